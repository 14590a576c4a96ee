"""Compiles, as `benchmarks.sm90`, the coefficients of a tile of 64 tokens and what takes their place on request.

python -m benchmarks.sm90_compact [--warps 1 2 4 8]
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.sm90 import Resources, compile, matrix

TYPES = {"TILES": "i32", "T": "i32", "C": "i32", "NT": "i32", "nu": "fp32"}
CASES = {  # J, decay, solve, decayed
    "huber momentum": (2, True, False, False),
    "exact momentum": (2, True, True, False),
    "exact delta": (1, True, True, True),
    "delta rule": (1, False, True, False),
}


def _types(function: Any) -> dict[str, str]:
    wide = {
        n: "*bf16" if "pairs" in n or n in ("y", "q", "out", "upstream", "dy") else "*fp32" for n in function.arg_names
    }
    return wide | {n: t for n, t in TYPES.items() if n in wide} | ({"N": "i32", "eps": "fp32"} if "N" in wide else {})


def coefficients(case: str, warps: int) -> list[Resources]:
    """In one kernel, and as vectors and products."""
    from miras.kernels import _gates, _products, _vectors

    J, decay, solve, decayed = CASES[case]
    flags = {"J": J, "BC": 64, "DECAY": decay, "PREVIOUS": False, "SOLVE": solve, "DECAYED": decayed}
    flags |= {"KIND": J - 1, "EXACT": False, "FULL": True, "PRECISION": "tf32", "R": 8}
    flags |= {"num_warps": warps, "num_stages": 3}
    absent = ({} if decay else {"log_decay": None}) | ({} if J > 1 else {"log_momentum": None})
    kernels = [_gates.coefficients, _gates.coefficients_backward, _vectors.vectors, _vectors.vectors_backward]
    out = []
    for kernel in [*kernels, *((_products.products, _products.products_backward) if J > 1 else ())]:
        names = {*kernel.arg_names, "num_warps", "num_stages"}
        constants = {n: c for n, c in (flags | absent).items() if n in names}
        out.append(compile(f"{kernel.fn.__name__:<22} {case} {warps} warps", kernel, constants, _types(kernel)))
    return out


def answers() -> list[Resources]:
    """Norms of rows of 64 channels."""
    from miras.kernels import _answers, _rows

    flags = {"O": 64, "ADD": True, "R": _rows.LAUNCH["R"], "num_warps": _rows.LAUNCH["num_warps"], "num_stages": 3}
    out = []
    for kernel in (_answers.answers, _answers.answers_backward):
        constants = {n: c for n, c in flags.items() if n in kernel.arg_names or n.startswith("num_")}
        out.append(compile(kernel.fn.__name__, kernel, constants, _types(kernel)))
    return out


def main() -> None:
    """Prints one line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warps", type=int, nargs="*", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    from miras.biases import L2

    for case in CASES:
        for warps in arguments.warps:
            print(*coefficients(case, warps), sep="\n", flush=True)
    print(*answers(), sep="\n", flush=True)
    for d, form in ((64, 2), (128, 1)):
        print(*matrix(d, L2(), 0, False, True, form=form), sep="\n", flush=True)
    for chunk in (16, 64):
        print(*matrix(64, L2(), 0, False, False, chunk, True, form=3), sep="\n", flush=True)


if __name__ == "__main__":
    main()

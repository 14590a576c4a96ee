"""Compiles, as `benchmarks.sm90`, the kernels that find coefficients of tiles, and the norms of answers.

python -m benchmarks.sm90_coefficients [--tiles 16 32 64]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.sm90 import OPTIONS, Resources, compile

TYPES = {"TILES": "i32", "T": "i32", "C": "i32", "NT": "i32", "N": "i32", "nu": "fp32", "eps": "fp32"}
HALF = frozenset(("pairs", "key_pairs", "d_pairs", "d_key_pairs", "y", "q", "out", "upstream", "dy"))
"""Pointers to operands; others are in float32."""

CASES = {  # kind of filter, decay, previous, solve, decayed
    "huber momentum": (1, True, False, False, False),
    "exact momentum": (1, True, False, True, False),
    "exact delta": (0, True, False, True, True),
    "delta rule": (0, False, False, True, False),
    "exact delta, read before": (0, True, True, True, True),
    "nesterov": (2, True, False, False, False),
}

SPILLS = 512
"""Bytes a thread."""


def _row(title: str, kernel: Any, options: dict[str, Any]) -> Resources:
    constants = {n: x for n, x in options.items() if n in kernel.arg_names or n in OPTIONS}
    types = {n: TYPES.get(n, "*bf16" if n in HALF else "*fp32") for n in kernel.arg_names}
    return compile(f"{kernel.fn.__name__:<22} {title}", kernel, constants | {"num_stages": 3}, types)


def coefficients(case: str, size: int) -> list[Resources]:
    """Of tiles of ``size`` tokens, by the kernels that take pairs in bfloat16."""
    from miras.kernels._coefficients import compact, gates, ops, products, vectors

    kind, decay, *flags = CASES[case]
    like = torch.empty(4, 16, 4096, device="meta")
    x = compact.Given(like, like if decay else None, like if kind else None, size, kind, 0.0, *flags)
    options = x.flags | {"KIND": kind, "EXACT": False, "FULL": True, "PRECISION": "tf32", "R": compact.TILES}
    options |= ({} if decay else {"log_decay": None}) | ({} if kind else {"log_momentum": None})
    launched: dict[Any, dict[str, Any]] = {}
    lean = compact.lean(size, kind, torch.bfloat16)
    if lean:
        launched |= {getattr(products, n): compact.LAUNCH[n] for n in ("products", "products_backward")}
        launched[vectors.totals] = compact.LAUNCH["vectors"]
    if lean or compact.formed(kind, x.previous, torch.bfloat16):
        launched |= dict.fromkeys((vectors.vectors, vectors.vectors_backward), compact.LAUNCH["vectors"])
    else:
        warps = {n: {"num_warps": by.get(size, 8)} for n, by in ops.WARPS.items()}
        launched |= {getattr(gates, n): w | ops.ALIKE for n, w in warps.items()}
    return [_row(f"{case}, tiles of {size}", kernel, options | how) for kernel, how in launched.items()]


def answers() -> list[Resources]:
    """Norms of rows of 64 channels."""
    from miras.kernels._shared import answers as _answers
    from miras.kernels._shared import rows

    options = {"O": 64, "ADD": True, **rows.LAUNCH}
    return [_row("", kernel, options) for kernel in (_answers.answers, _answers.answers_backward)]


def main() -> None:
    """Prints one line a kernel; fails where one spills, transposes an accumulator, or gives its threads other copies of a sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, nargs="*", default=[16, 32, 64])
    found = [row for case in CASES for size in parser.parse_args().tiles for row in coefficients(case, size)]
    found += answers()
    print(*found, sep="\n")
    uneven = {r.name for r in found if r.uneven and r.name.startswith("coefficients")}  # which write all copies of sums
    if bad := [r.name for r in found if r.spills > SPILLS or r.transposed or r.undefined or r.name in uneven]:
        raise SystemExit(f"too many spills, a transposed accumulator, or sums that differ: {bad}")


if __name__ == "__main__":
    main()

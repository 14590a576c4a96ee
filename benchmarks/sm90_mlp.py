"""Compiles the perceptron's kernels for compute capability 9.0, with no GPU, as `benchmarks.sm90` does the matrix memory's.

python -m benchmarks.sm90_mlp [--dims 64] [--tiles 64 32]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.sm90 import Resources, compile
from miras.architectures import MLP
from miras.biases import L2, AttentionalBias, Huber, Lp

FORWARD = "gate lr inverse rows into mix w1 w2 end1 end2 kept_o squares parts norms out rates sizes meet"
BACKWARD = "d_rows d_u2 d_rates d_w1 d_w2 near d_gate d_lr d_inverse d_mix d_into"
BIASES = "biases end_biases seen_b rates_b d_biases late_b"
GAINS = "gains end_gains seen_g errors_g d_seen_g d_errors_g d_gains late_g"
WIDE = frozenset(f"{FORWARD} {BACKWARD} {BIASES} {GAINS}".split())
"""Arguments in float32; the others are operands."""


CASES = (
    (L2(), 1, False, "0", False, False),
    (L2(), 0, False, "0", False, False),
    (Huber(), 1, True, "0", False, False),
    (Lp(), 0, False, "1 4.0 0.1 1.0 1.0", False, False),
    (Lp(), 0, True, "1 4.0 0.1 1.0 1.0", False, False),
    (L2(), 0, True, "2 1.0 1.0 64 256", False, False),
    (L2(half=False), 0, False, "0", True, False),
    (L2(half=False), 1, True, "0", True, False),
    (L2(), 0, False, "0", False, True),
    (Huber(), 1, True, "0", False, True),
    (L2(half=False), 0, False, "0", True, True),
    (L2(half=False), 1, True, "0", True, True),
)
"""Bias, slots, whether steps are bounded, link, whether there are fast biases, and whether a fast gain and shift."""


def _type(name: str) -> str:
    if name in ("first", "count", "total") or name.endswith("_stride"):
        return "i32"
    return "*i32" if name == "tickets" else "*fp32" if name in WIDE else "*bf16"


def perceptron(
    d: int,
    bias: AttentionalBias,
    slots: int,
    bound: bool,
    link: str = "0",
    biases: bool = False,
    gains: bool = False,
    tile: int | None = None,
) -> list[Resources]:
    """All kernels for heads of d, expansion 4 and chunks of 64; ``link`` as `miras.kernels._mlp_launch.Link.of` reads it."""
    from miras.kernels import _mlp_launch, _mlp_ops

    b, tokens, f, j = 2, 128, 4 * d, 1 + slots
    half, full = torch.zeros(b, tokens, d, dtype=torch.bfloat16), torch.zeros
    x = _mlp_launch.Given(
        half, half, half, full(b, tokens), full(b, tokens) if bound else None, full(b, 2, j, 64), full(b, 2, 64, 64),
        full(b, 2, j, 64), full(b, 2, j, j), full(b, j, d, f), full(b, j, f, d), full(b, tokens, 1) if bias.gates else None,
        full(b, j, f + d) if biases else None, full(b, j, 2 * d) if gains else None,
    )  # fmt: skip
    how = _mlp_launch.recall(_mlp_launch.key(MLP(), bias, link))
    absent = (() if bound else ("inverse", "d_inverse")) + (() if bias.gates else ("gate", "d_gate"))
    absent += ("rates", "sizes") if not how.link.kind else ("rates",) if how.link.kind != 1 else ()
    absent += () if how.link.kind else ("seen1 of reverse",)
    absent += () if how.link.kind or gains else ("meet",)
    absent += ("out of read",) if gains else tuple(GAINS.split())
    absent += () if biases else (*BIASES.split(), "rows of reverse")
    found = []
    for name in _mlp_launch.LAUNCH:
        kernel: Any = getattr(_mlp_ops, name)
        before_norm = how._replace(norm=False, residual=False) if gains and name == "read" else how
        constants = x.launch(before_norm, kernel) | {
            n: None for n in kernel.arg_names if n in absent or f"{n} of {name}" in absent
        }
        if tile is not None:
            constants |= {"BF": tile} | ({"ROWS": 64 * tile // f} if "ROWS" in constants else {})
        wide = {("reverse", "d_k"), *([("read", "answer"), ("read_backward", "d_answer")] if gains else [])}
        types = {n: "*fp32" if (name, n) in wide else _type(n) for n in kernel.arg_names}
        title = f"{name} d={d} {bias.name} slots={slots} tile={constants['BF']}{' bound' if bound else ''}"
        title += f" link={how.link.kind}" if how.link.kind else ""
        title += f"{' biases' if biases else ''}{' gains' if gains else ''}"
        found.append(compile(title, kernel, constants, types))
    return found


def main() -> None:
    """Prints one line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[64])
    parser.add_argument("--tiles", type=int, nargs="*", default=[None])
    arguments = parser.parse_args()
    for d in arguments.dims:
        for tile in arguments.tiles:
            for case in CASES:
                for row in perceptron(d, *case, tile):
                    print(row, flush=True)


if __name__ == "__main__":
    main()

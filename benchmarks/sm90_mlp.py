"""Compiles the perceptron's kernels for compute capability 9.0, with no GPU, as `benchmarks.sm90` does the matrix memory's.

python -m benchmarks.sm90_mlp [--dims 64 128] [--tiles 64 32] [--blocks 1 2]
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from benchmarks.sm90 import Resources, compile
from miras.architectures import MLP
from miras.biases import L2, AttentionalBias, Huber, Lp

FORWARD = "gate lr inverse rows into mix w1 w2 end1 end2 kept_o squares parts norms out rates sizes meet"
BACKWARD = "d_rows d_u2 d_rates d_w1 d_w2 near d_gate d_lr d_inverse d_mix d_into"
BIASES = "biases end_biases seen_b rates_b d_biases late_b"
WIDE = frozenset(f"{FORWARD} {BACKWARD} {BIASES}".split())
"""Arguments in float32; the others are operands."""


CASES = (
    (L2(), 1, False, "0", False),
    (L2(), 0, False, "0", False),
    (Huber(), 1, True, "0", False),
    (Lp(), 0, False, "1 4.0 0.1 1.0 1.0", False),
    (Lp(), 0, True, "1 4.0 0.1 1.0 1.0", False),
    (L2(), 0, True, "2 1.0 1.0 64 256", False),
    (L2(half=False), 0, False, "0", True),
    (L2(half=False), 1, True, "0", True),
)
"""Bias, slots, whether steps are bounded, link, whether there are fast biases."""


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
    tile: int | None = None,
    blocks: int = 1,
) -> list[Resources]:
    """All kernels for heads of d, expansion 4 and chunks of some blocks of 64; ``link`` as `miras.kernels._mlp_launch.Link.of` reads it."""
    from miras.kernels import _mlp_launch, _mlp_ops

    b, tokens, f, j = 2, 128, 4 * d, 1 + slots
    half, full = torch.zeros(b, tokens, d, dtype=torch.bfloat16), torch.zeros
    x = _mlp_launch.Given(
        half, half, half, full(b, tokens), full(b, tokens) if bound else None, full(b, 2, j, 64), full(b, 2, 64, 64),
        full(b, 2, j, 64), full(b, 2, j, j), full(b, j, d, f), full(b, j, f, d), full(b, tokens, 1) if bias.gates else None,
        full(b, j, f + d) if biases else None,
    )  # fmt: skip
    how = _mlp_launch.recall(_mlp_launch.key(MLP(), bias, link, blocks))
    absent = (() if bound else ("inverse", "d_inverse")) + (() if bias.gates else ("gate", "d_gate"))
    absent += ("rates", "sizes", "meet") if not how.link.kind else ("rates",) if how.link.kind != 1 else ()
    absent += () if how.link.kind else ("seen1 of reverse",)
    absent += () if biases else (*BIASES.split(), "rows of reverse")
    found = []
    for name in _mlp_launch.LAUNCH:
        kernel: Any = getattr(_mlp_ops, name)
        constants = x.launch(how, kernel) | {
            n: None for n in kernel.arg_names if n in absent or f"{n} of {name}" in absent
        }
        if tile is not None:
            constants |= {"BF": tile} | ({"ROWS": 64 * tile // f} if "ROWS" in constants else {})
        types = {n: "*fp32" if (name, n) == ("reverse", "d_k") else _type(n) for n in kernel.arg_names}
        title = f"{name} d={d} {bias.name} slots={slots} tile={constants['BF']}{' bound' if bound else ''}"
        title += f" link={how.link.kind}" if how.link.kind else " biases" if biases else ""
        title += f" blocks={blocks}" if blocks > 1 else ""
        row = compile(title, kernel, constants, types)
        found.append(row)
        if "tickets" in kernel.arg_names:
            print(f"{title}: {heads(row, constants['num_warps'], f // constants['BF'])} heads at once", flush=True)
    return found


def heads(r: Resources, warps: int, tiles: int) -> int:
    """Heads whose programs, which wait for each other, a device of compute capability 9.0 and 132 multiprocessors runs at once."""
    registers = -(-r.registers // 8) * 8 * 32 * warps
    return 132 * min(65536 // registers, 228 * 1024 // (r.shared + 1024)) // tiles


def main() -> None:
    """Prints one line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[64])
    parser.add_argument("--tiles", type=int, nargs="*", default=[None])
    parser.add_argument("--blocks", type=int, nargs="*", default=[1])
    arguments = parser.parse_args()
    for d, tile, blocks in itertools.product(arguments.dims, arguments.tiles, arguments.blocks):
        for bias, slots, bound, link, biases in CASES:
            if (d > 64 or blocks > 1) and (link != "0" or biases):
                continue  # left to PyTorch
            for row in perceptron(d, bias, slots, bound, link, biases, tile, blocks):
                print(row, flush=True)


if __name__ == "__main__":
    main()

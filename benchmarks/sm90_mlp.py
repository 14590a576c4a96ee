"""Compiles the perceptron's kernels for compute capability 9.0, with no GPU, as `benchmarks.sm90` does the matrix memory's.

python -m benchmarks.sm90_mlp [--dims 48 64 128] [--tiles 64 32] [--blocks 1 2] [--gated]
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.sm90 import LIMIT, Resources, compile, on_tensor_cores
from miras.architectures import MLP, GatedMLP
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
    (L2(), 0, True, "2 1.0 1.0", False, False),
    (L2(half=False), 0, False, "0", True, False),
    (L2(half=False), 1, True, "0", True, False),
    (L2(), 0, False, "0", False, True),
    (Huber(), 1, True, "0", False, True),
    (L2(half=False), 0, False, "0", True, True),
    (L2(half=False), 1, True, "0", True, True),
)
"""Bias, slots, whether steps are bounded, link (of a softmax without its inputs), whether there are fast biases, and whether a fast
gain and shift."""

PLAIN = ("0", False, False)
"""No link, and nothing beside the matrices."""

GATED = ((L2(), 0, False), (L2(), 1, False), (Huber(), 0, True), (Huber(), 1, True))
"""Of the gated perceptron: bias, slots, whether steps are bounded."""


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
    blocks: int = 1,
) -> list[Resources]:
    """All kernels for heads of d, expansion 4 and chunks of some blocks of 64; ``link`` as `miras.kernels._mlp.launch.Link.of` reads it.

    Heads are padded to a power of two.
    """
    from miras.kernels._mlp import launch
    from miras.kernels._mlp import ops as mlp_ops

    b, f, j, width = 2, 4 * d, 1 + slots, 1 << (d - 1).bit_length()
    given = _given(width, bias, slots, bound, torch.zeros(b, j, width, f))
    vectors = {
        "biases": torch.zeros(b, j, f + width) if biases else None,
        "gains": torch.zeros(b, j, 2 * width) if gains else None,
    }
    x = launch.Given(*given, **vectors)
    link += f" {d} {f}" if link[0] == "2" else ""
    how = launch.recall(launch.key(MLP(), bias, link, blocks, d))
    absent = ("rates", "sizes") if not how.link.kind else ("rates",) if how.link.kind != 1 else ()
    absent += () if how.link.kind else ("seen1 of reverse",)
    absent += () if how.link.kind or gains else ("meet",)
    absent += ("out of read",) if gains else tuple(GAINS.split())
    absent += () if biases else (*BIASES.split(), "rows of reverse")
    title = f"d={d} {bias.name} slots={slots} tile={{}}{' bound' if bound else ''}"
    title += f" link={how.link.kind}" if how.link.kind else ""
    title += f"{' biases' if biases else ''}{' gains' if gains else ''}{f' blocks={blocks}' if blocks > 1 else ''}"
    return _compiled(mlp_ops, title, x, how, absent, tile)


def gated(d: int, bias: AttentionalBias, slots: int, bound: bool, tile: int | None = None) -> list[Resources]:
    """All kernels of the gated perceptron, at the same sizes."""
    from miras.kernels._gated import launch as gated_launch
    from miras.kernels._gated import ops as gated_ops
    from miras.kernels._mlp import launch

    x = gated_launch.Given(*_given(d, bias, slots, bound, torch.zeros(2, 1 + slots, 2, d, 4 * d)))
    how = launch.recall(launch.key(GatedMLP(residual=True, norm=True), bias))
    title = f"d={d} {bias.name} slots={slots} tile={{}}{' bound' if bound else ''} gated"
    return _compiled(gated_ops, title, x, how, (), tile)


def _given(d: int, bias: AttentionalBias, slots: int, bound: bool, w1: Tensor) -> list[Any]:
    """The first tensors of `miras.kernels._mlp.launch.Given`."""
    b, tokens, j = 2, 128, 1 + slots
    half, full = torch.zeros(b, tokens, d, dtype=torch.bfloat16), torch.zeros
    return [
        half, half, half, full(b, tokens), full(b, tokens) if bound else None, full(b, 2, j, 64), full(b, 2, 64, 64),
        full(b, 2, j, 64), full(b, 2, j, j), w1, full(b, j, w1.shape[-1], d), full(b, tokens, 1) if bias.gates else None,
    ]  # fmt: skip


def _compiled(ops: Any, title: str, x: Any, how: Any, absent: tuple[str, ...], tile: int | None) -> list[Resources]:
    """Every kernel of a module of operators, without the arguments that are absent."""
    from miras.kernels._mlp import launch

    absent += () if x.inverse is not None else ("inverse", "d_inverse")
    absent += () if x.gate is not None else ("gate", "d_gate")
    found = []
    for name in launch.LAUNCH:
        kernel: Any = getattr(ops, name)
        normed_later = x.gains is not None
        before_norm = how._replace(norm=False, residual=False) if normed_later and name == "read" else how
        constants = x.launch(before_norm, kernel) | {
            n: None for n in kernel.arg_names if n in absent or f"{n} of {name}" in absent
        }
        if tile is not None:
            constants |= {"BF": tile} | ({"ROWS": 64 * tile // x.w1.shape[-1]} if "ROWS" in constants else {})
        wide = {("reverse", "d_k"), *([("read", "answer"), ("read_backward", "d_answer")] if normed_later else [])}
        types = {n: "*fp32" if (name, n) in wide else _type(n) for n in kernel.arg_names}
        row = compile(f"{name} {title.format(constants['BF'])}", kernel, constants, types)
        found.append(row)
        if "tickets" in kernel.arg_names:
            at_once = heads(row, constants["num_warps"], x.w1.shape[-1] // constants["BF"])
            print(f"{row.name}: {at_once} heads at once", flush=True)
            assert at_once > 0, "programs wait for others that have no room"
    return found


def heads(r: Resources, warps: int, tiles: int) -> int:
    """Heads whose programs, which wait for each other, a device of compute capability 9.0 and 132 multiprocessors runs at once."""
    registers = -(-r.registers // 8) * 8 * 32 * warps
    return 132 * min(65536 // registers, 228 * 1024 // (r.shared + 1024)) // tiles


def main() -> None:
    """Prints one line a kernel."""

    def show(rows: list[Resources]) -> list[str]:
        print(*rows, sep="\n", flush=True)
        return [r.name for r in rows if r.shared > LIMIT or r.transposed or r.undefined or not on_tensor_cores(r)]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[64])
    parser.add_argument("--tiles", type=int, nargs="*", default=[None])
    parser.add_argument("--blocks", type=int, nargs="*", default=[1])
    parser.add_argument("--gated", action="store_true", help="of the gated perceptron only")
    arguments, bad = parser.parse_args(), []
    for d, tile, blocks in itertools.product(arguments.dims, arguments.tiles, arguments.blocks):
        wide = d > 64 or blocks > 1  # links, biases, gains and gates are left to PyTorch
        padded = d & (d - 1)  # which neither gates nor gains are
        for case in () if wide or padded else GATED:
            bad += show(gated(d, *case, tile))
        for case in () if arguments.gated else CASES:
            if not ((wide and case[3:] != PLAIN) or (padded and case[5])):
                bad += show(perceptron(d, *case, tile, blocks))
    if bad:
        raise SystemExit(f"too much shared memory, no tensor cores, or a transposed accumulator: {bad}")


if __name__ == "__main__":
    main()

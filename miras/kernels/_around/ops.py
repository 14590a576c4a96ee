"""What surrounds a memory as two operators that compilers see as one node each.

Shapes: B batch, T tokens, C channels, W taps, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miras import convolution
from miras.kernels import around
from miras.kernels._around import gated as around_gated
from miras.kernels._around import heads as around_heads
from miras.kernels._matrix.launches import rowed
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch, power

TILE = 2048
"""Numbers of a tile of tokens of one head: twice as many take so many registers that too few loads are under way."""

STRETCH = 64
"""Tokens that a program of the convolution's backward pass walks along."""

AHEAD = 4
"""Tokens that it loads at a time."""

ROW = 128
"""Channels of a token that it takes, as many heads as fit."""


def tokens(width: int) -> int:
    """Of a tile."""
    return max(16, TILE // power(width))


def _parts(counts: list[int], units: bool) -> Iterator[tuple[int, int, bool]]:
    """Heads, how many come before them, and whether they are scaled to length one, of queries, keys and values."""
    for i, heads in enumerate(counts):
        yield heads, sum(counts[:i]), units and i < 2


def _heads(
    line: Tensor, taps: Tensor, tail: Tensor, counts: list[int], silu: bool, units: bool, narrow: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `miras.convolution.heads` without a mask; in memory the tokens of a head lie next to each other."""
    line, by_tap, tail = rowed(line), taps.mT.contiguous(), rowed(tail)
    B, T, C = line.shape
    D = C // sum(counts)
    block = tokens(D)
    q, k, v, _ = out = _blank_heads(line, taps, tail, counts, silu, units, narrow)
    for part, (H, before, unit) in zip((q, k, v), _parts(counts, units), strict=True):
        if H:
            launch(
                around_heads.heads, B * H * -(-T // block),
                line, by_tap, tail, part, *line.stride()[:2], *tail.stride()[:2], T, sum(counts), H, before, convolution.SHORTEST,
                D=D, W=taps.shape[1], BT=block, BD=power(D), SILU=silu, UNIT=unit, num_warps=4,
            )  # fmt: skip
    kept = tail.shape[1]
    torch.cat([tail[:, T:], line[:, max(T - kept, 0) :].to(tail.dtype)], 1, out=out[3])
    return out


def _blank_heads(
    line: Tensor, taps: Tensor, tail: Tensor, counts: list[int], silu: bool, units: bool, narrow: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, C = line.shape
    D = C // sum(counts)
    unit = line.dtype if narrow or not units else torch.promote_types(line.dtype, torch.float32)
    q, k, v = (
        line.new_empty(B, heads, T, D, dtype=dtype).transpose(1, 2)
        for heads, dtype in zip(counts, (unit, unit, line.dtype), strict=True)
    )
    return q, k, v, tail.new_empty(tail.shape)


def _heads_backward(
    line: Tensor,
    taps: Tensor,
    tail: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    d_last: Tensor,
    counts: list[int],
    silu: bool,
    units: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of line, taps and tail."""
    line, by_tap, tail, d_last = rowed(line), taps.mT.contiguous(), rowed(tail), d_last.contiguous()
    (B, T, C), W = line.shape, taps.shape[1]
    D = C // sum(counts)
    block, stretches = max(1, ROW // power(D)), -(-T // STRETCH)
    d_line, d_taps, d_tail = _blank_heads_backward(line, taps, tail)
    sums = taps.new_empty(B, stretches, W, C, dtype=torch.float32)
    for d_part, (H, before, unit) in zip(map(rowed, (d_q, d_k, d_v)), _parts(counts, units), strict=True):
        if H:
            b, t, h = d_part.stride()[:3]
            launch(
                around_heads.heads_backward, B * stretches * -(-H // block),
                line, by_tap, tail, d_part, d_last, d_line, sums, d_tail,
                *line.stride()[:2], *tail.stride()[:2], b, h, t, T, sum(counts), H, before, convolution.SHORTEST, STRETCH,
                D=D, W=W, BH=block, BD=power(D), AHEAD=AHEAD, SILU=silu, UNIT=unit, num_warps=1,
            )  # fmt: skip
    return d_line, d_taps.copy_(sums.sum((0, 1)).mT), d_tail


def _blank_heads_backward(line: Tensor, taps: Tensor, tail: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return line.new_empty(line.shape), taps.new_empty(taps.shape), tail.new_empty(tail.shape)


def _heads_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.how = inputs[3:]


def _heads_pull(pull: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *pull(*ctx.saved_tensors, *grads, *ctx.how[:3]), *[None] * 4


def _gated(y: Tensor, gain: Tensor, gate: Tensor, eps: float) -> Tensor:
    """As `miras.kernels.around.slow_gated`."""
    y, gate = rowed(y), rowed(gate)
    B, T, H, D = y.shape
    out, block = _blank_gated(y, gain, gate, eps), tokens(D)
    launch(
        around_gated.gated, B * H * -(-T // block),
        y, gain, gate, out, *y.stride()[:3], *gate.stride()[:2], T, H, eps,
        D=D, BT=block, BD=power(D), num_warps=4,
    )  # fmt: skip
    return out


def _blank_gated(y: Tensor, gain: Tensor, gate: Tensor, eps: float) -> Tensor:
    return gate.new_empty(gate.shape)


def _gated_backward(y: Tensor, gain: Tensor, gate: Tensor, d_out: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of answers, gain and gate."""
    y, gate, d_out = rowed(y), rowed(gate), rowed(d_out)
    B, T, H, D = y.shape
    block = tokens(D)
    programs = B * H * -(-T // block)
    d_y, d_gain, d_gate = _blank_gated_backward(y, gain, gate)
    sums = gain.new_empty(programs, D, dtype=torch.float32)
    launch(
        around_gated.gated_backward, programs,
        y, gain, gate, d_out, d_y, sums, d_gate,
        *y.stride()[:3], *gate.stride()[:2], *d_out.stride()[:2], T, H, eps,
        D=D, BT=block, BD=power(D), num_warps=4,
    )  # fmt: skip
    return d_y, d_gain.copy_(sums.sum(0)), d_gate


def _blank_gated_backward(y: Tensor, gain: Tensor, gate: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = y.shape
    return y.new_empty(B, H, T, D).transpose(1, 2), gain.new_empty(gain.shape), gate.new_empty(gate.shape)


def _gated_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.how = inputs[3:]


def _gated_pull(pull: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *pull(*ctx.saved_tensors, grad, *ctx.how), None


heads = Differentiable(
    "heads", _heads, _blank_heads, _heads_setup, _heads_pull,
    Operator("heads_backward", _heads_backward, _blank_heads_backward), again=convolution.heads,
)  # fmt: skip
gated = Differentiable(
    "gated", _gated, _blank_gated, _gated_setup, _gated_pull,
    Operator("gated_backward", _gated_backward, _blank_gated_backward), again=around.slow_gated,
)  # fmt: skip

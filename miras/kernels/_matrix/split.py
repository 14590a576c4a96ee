"""A matrix memory over segments of a sequence at once, for few heads: which segments, and the operator.

Where the errors are affine in the memory, so is what a segment does to it. All segments are carried out from an empty
memory beside each other, their starts follow one from another in one small product each, and then every segment is a
sequence of its own, as if the batch were larger. Gradients of starts go the other way through the same products.

Shapes: B batch, H heads, S segments, T tokens of a segment, m its tiles of C tokens, J = 1 + K memory and slots, I and O
key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import residuals
from miras.kernels._matrix import carry as _carry
from miras.kernels._matrix import launches
from miras.kernels._matrix.launches import EVERY, Call, Tiles, config, rowed, shared_arguments, strides
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import constant, launch

CARRY, JOIN, REST, GAIN = 0.8, 5, 0.011, 0.8
"""A tile of `carry.carry`, a product of starts, and what every tile costs where some are left over, for then all answers are
copied: in tiles of the whole scan. Last, what part of its time must be left."""

LEAST = 8
"""Fewest tiles of a segment."""

MOST = 64
"""Most segments."""


@constant
def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def segments(x: Tiles, scales: bool, available: int) -> int:
    """Into how many segments of ``x.m // n`` tiles to cut a sequence, 1 for none: the quickest by counting waves of programs.

    Args:
        x: the whole sequence.
        scales: whether errors do not depend on the memory, so that a segment only scales what was there.
        available: multiprocessors.
    """
    c, carry = config(x, False, "scan"), config(x, False, "carry")
    at_once, blocks = max(available * 8 // c.warps, 1), -(-x.O // c.block)
    beside, own, columns = max(available * 8 // carry.warps, 1), -(-x.O // carry.block), -(-x.J * x.I // carry.block)

    def time(n: int) -> float:
        scans = -(-x.programs * blocks * n // at_once)
        if n == 1:
            return scans * x.m
        carried = x.programs * ((n - 1) * own + (0 if scales else (n - 2) * columns)) / beside
        rest = x.m % n + REST * x.programs * x.m if x.m % n else 0
        return (CARRY * max(carried, 1) + scans) * (x.m // n) + JOIN * n + rest

    most = min(x.m // LEAST, MOST) if x.programs * blocks < available else 1
    best = min(range(1, most + 1), key=time, default=1)
    return best if time(best) < GAIN * time(1) else 1


def _carried(call: Call, solved: Tensor, start: Tensor, count: int, bias: str) -> tuple[Tensor, Tensor]:
    """Own parts ``[B, S - 1, H, J I, O]`` and maps ``[B, S - 2, H, J I, J I]`` of segments; of constant errors, ``J`` and ``I O``."""
    x, found = call.tiles, residuals.recall(bias)
    scales = residuals.constant(bias)
    blocks, shared = shared_arguments(x, False, "carry")
    rows, width = x.B // count, x.J * x.I
    own = start.new_empty(rows, count - 1, x.H, x.J, x.I, x.O)
    phi = start.new_empty(rows, 0 if scales else count - 2, x.H, width, width)
    columns = -(-width // shared["BV"]) if phi.numel() else 0
    programs = rows * x.H * (count - 1) * blocks
    flags = {n: call.flags[n] for n in ("SOLVE", "GATE")}
    launch(
        _carry.carry, programs + rows * x.H * (count - 2) * columns,
        call.k, call.v, call.lr, call.gate, call.into, call.mix, call.key_rows, solved, start, own, phi,
        *strides(call.k, call.v), *call.sizes(), count, programs,
        NP=max(columns, 1), MAPS=columns > 0, CONSTANT=scales, RESIDUAL=found.residual, CONSTANTS=found.constants, **flags, **shared,
    )  # fmt: skip
    if scales:
        own = own.flatten(-2)
        return own, _scales(call.mix.unflatten(0, (rows, count))[:, 1:-1])
    return own.flatten(-3, -2), phi


def _scales(mix: Tensor) -> Tensor:
    """The product of the mixes of all tiles, the last one first: ``[..., m, J, J]`` to ``[..., J, J]``."""
    while (m := mix.shape[-3]) > 1:
        pairs = mix[..., : m // 2 * 2, :, :].unflatten(-3, (m // 2, 2))
        mix = torch.cat([pairs[..., 1, :, :] @ pairs[..., 0, :, :], mix[..., m // 2 * 2 :, :, :]], -3)
    return mix[..., 0, :, :]


def starts(start: Tensor, own: Tensor, maps: Tensor) -> Tensor:
    """The stacks before all segments, ``[B S, H, J, I, O]``, in float32: errors of starts would not fade out."""
    each = [start.reshape(own[:, 0].shape), own[:, 0]]
    for s in range(1, own.shape[1]):
        each.append(own[:, s] + maps[:, s - 1] @ each[-1])
    return torch.stack(each, 1).reshape(-1, *start.shape[1:])


def ends(found: Tensor, d_end: Tensor, maps: Tensor) -> Tensor:
    """Gradients of the stacks after all segments, from those of the stacks before each one, found with no gradient after it.

    Only that of the last segment has been found with the gradient after the whole sequence.
    """
    rows = d_end.shape[0]
    found = found.unflatten(0, (rows, -1))
    shape = *d_end.shape[:2], maps.shape[-1], -1
    each = [d_end.reshape(shape), found[:, -1].reshape(shape)]
    for s in range(maps.shape[1], 0, -1):
        each.append(found[:, s].reshape(shape) + maps[:, s - 1].mT @ each[-1])
    return torch.stack(each[::-1], 1).reshape(-1, *d_end.shape[1:])


def _split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    start: Tensor,
    count: int,
    bias: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `miras.kernels._matrix.ops.matrix`, for segments of equal length beside each other: tensors of tokens are ``[B S, H, T, ...]``.

    Args:
        start: ``[B, H, J, I, O]``, before the first segment.
        count: S, at least 2.

    Returns:
        Outputs ``[B S, H, T, O]``, the stack after the last segment, stored states, solved systems and maps.
    """
    call = Call.of(q, k, v, lr, None, gate, slope, rows, pairs, into, mix, key_rows, key_pairs)
    solved = launches.solve(call)
    own, maps = _carried(call, solved, start, count, bias)
    before = starts(start, own, maps)
    o, after, stored = launches.forward(call, solved, before, residuals.recall(bias), keep)
    return o, after.unflatten(0, (-1, count))[:, -1].clone(), stored, solved, maps


def _blank(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, start, count, bias, keep = arguments
    call = Call.of(*tensors[:4], None, *tensors[4:])
    x, (rows, heads, *stack) = call.tiles, start.shape
    width = x.J if residuals.constant(bias) else x.J * x.I
    return (
        call.q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2),
        torch.empty_like(start),
        start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, *stack),
        call.q.new_empty(x.B, x.H, x.m if call.slope is not None else 0, x.C, x.C),
        start.new_empty(rows, count - 2, heads, width, width),
    )


def _split_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    stored: Tensor,
    solved: Tensor,
    maps: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    count: int,
    bias: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `split` in their order; an empty tensor for one that is None."""
    call = Call.of(q, k, v, lr, None, gate, slope, rows, pairs, into, mix, key_rows, key_pairs)
    found, d_o = residuals.recall(bias), rowed(d_o)
    scratch = launches.again(call, solved, stored, found)
    after = torch.zeros(d_end.shape[0], count, *d_end.shape[1:], dtype=d_end.dtype, device=d_end.device)
    after[:, -1] = d_end
    alone = launches.reverse(call, solved, scratch, d_o, after.flatten(0, 1), found).start
    back = launches.reverse(call, solved, scratch, d_o, ends(alone, d_end, maps), found)
    d = launches.pull(call, scratch, d_o)
    vectors = [d.q, d.k, back.v, d.rate, back.gate, d.slope]
    d_start = back.start.unflatten(0, (-1, count))[:, 0].clone()
    return [*vectors, d.rows, d.pairs, d.into, d.mix, d.key_rows, d.key_pairs, d_start]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    tensors, d_end = arguments[:12], arguments[16]
    return [arguments[3].new_empty(0) if t is None else t.new_empty(t.shape) for t in (*tensors, d_end)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, count, bias, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.rest = count, bias
    ctx.present = [t is not None for t in inputs[:13]]


def _backward(pull: Any, ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, d_o, d_end, *ctx.rest)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None, None


split_backward = Operator("split_backward", _split_backward, _blank_gradients)
split = Differentiable("split", _split, _blank, _setup, _backward, split_backward, answers=range(2))

"""The matrix memory as two operators that compilers see as one node each.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import residuals
from miras.kernels._matrix import bounded, launches
from miras.kernels._matrix.launches import EVERY, Call, rowed
from miras.kernels.operator import Differentiable, Operator


def _matrix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    start: Tensor,
    bias: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tiles of a matrix memory; see `miras.kernels._matrix.scan`.

    Args:
        q: ``[B, H, T, I]``.
        k: ``[B, H, T, I]``.
        v: ``[B, H, T, O]``; for the key ``affine`` the offsets.
        lr: ``[B, H, T]``.
        inverse: ``[B, H, T]`` where steps are bounded.
        gate: of the bias, ``[B, H, T]`` or ``[B, H, T, O]``.
        slope: of an affine residual, ``[B, H, T]``: then every token sees those before it.
        rows: ``[B, H, m, J, C]``, what readers multiply memory and slots with.
        pairs: ``[B, H, m, C, C]``.
        into: ``[B, H, m, J, C]``.
        mix: ``[B, H, m, J, J]``.
        key_rows: as rows, of the state a token's prediction sees; with ``slope`` only.
        key_pairs: as pairs, likewise.
        start: ``[B, H, J, I, O]``.
        bias: key from `miras.kernels.residuals.key`.
        keep: whether backward will follow.

    Returns:
        Outputs ``[B, H, T, O]``, the stack at the end; stored states, solved systems, and squares of errors summed (`bounded.sums`).
    """
    call = Call.of(q, k, v, lr, inverse, gate, slope, rows, pairs, into, mix, key_rows, key_pairs)
    solved = launches.solve(call)
    found = residuals.recall(bias)
    squares = bounded.sums(call, found)
    o, end, stored = launches.forward(call, solved, start, found, keep, **bounded.together(call, "scan", squares))
    return o, end, stored, solved, squares


def _blank(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, start, bias, keep = arguments
    call = Call.of(*tensors)
    x = call.tiles
    return (
        call.q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2),
        torch.empty_like(start),
        start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, x.J, x.I, x.O),
        call.q.new_empty(x.B, x.H, x.m if call.slope is not None else 0, x.C, x.C),
        bounded.sums(call, residuals.recall(bias)),
    )


def _matrix_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
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
    squares: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    bias: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `matrix` in their order; an empty tensor for one that is None."""
    call, found = (
        Call.of(q, k, v, lr, inverse, gate, slope, rows, pairs, into, mix, key_rows, key_pairs),
        residuals.recall(bias),
    )
    d_o = rowed(d_o)
    scratch = launches.again(call, solved, stored, found, **bounded.alone(squares))
    back = launches.reverse(call, solved, scratch, d_o, d_end, found, **bounded.together(call, "reverse", squares))
    d = launches.pull(call, scratch, d_o)
    d_lr = d.rate if inverse is None else back.lr
    vectors = [d.q, d.k, back.v, d_lr, back.inverse, back.gate, d.slope]
    return [*vectors, d.rows, d.pairs, d.into, d.mix, d.key_rows, d.key_pairs, back.start]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    tensors, d_end = arguments[:13], arguments[17]
    return [arguments[3].new_empty(0) if t is None else t.new_empty(t.shape) for t in (*tensors, d_end)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, bias, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.bias = bias
    ctx.present = [t is not None for t in inputs[:14]]


def _backward(pull: Any, ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, d_o, d_end, ctx.bias)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


matrix_backward = Operator("matrix_backward", _matrix_backward, _blank_gradients)
matrix = Differentiable("matrix", _matrix, _blank, _setup, _backward, matrix_backward, answers=range(2))

"""A matrix that is a link of what accumulates, formed once a chunk, as an operator of the kernels of one matrix.

Keys and queries meet the same weights, those of the chunk's start, so that no token reads another of its chunk: there are no
scores, and gradients of queries and keys come from one kernel. States are kept in float32, since a link may magnify their rounding.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import links, residuals
from miras.kernels._matrix import launches
from miras.kernels._matrix import pull as _pull
from miras.kernels._matrix.launches import EVERY, Call, rowed
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch


def _call(*tensors: Tensor | None) -> Call:
    """With what writes in the place of rows and pairs, which a read at the anchor has no use for."""
    *vectors, into, mix = tensors
    return Call.of(*vectors, None, into, into, into, mix, None, None)


def _linked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    into: Tensor,
    mix: Tensor,
    level: Tensor | None,
    start: Tensor,
    bias: str,
    link: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `miras.kernels._matrix.ops.matrix`, of whole tiles.

    Args:
        level: the threshold of the link at the start of every tile, ``[B, H, m]``.
        start: memory and slots, ``[B, H, J, I, O]``; the memory is an accumulator.
        link: key from `miras.kernels.links.key`.

    Returns:
        Outputs ``[B, H, T, O]``, the stack at the end, its memory not committed yet, and stored states.
    """
    call, more = _call(q, k, v, lr, inverse, gate, into, mix), links.recall(link).forward
    return launches.forward(call, call.q, start, residuals.recall(bias), keep, level=level, **more)


def _blank(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _, start, _, _, keep = arguments
    x = _call(*tensors).tiles
    return (
        tensors[0].new_empty(x.B, x.T, x.H, x.O).transpose(1, 2),
        torch.empty_like(start),
        start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, x.J, x.I, x.O),
    )


def _linked_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    into: Tensor,
    mix: Tensor,
    level: Tensor | None,
    stored: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    bias: str,
    link: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `linked` in their order; an empty tensor for one that is None."""
    call, found = _call(q, k, v, lr, inverse, gate, into, mix), links.recall(link)
    residual, d_o, x = residuals.recall(bias), rowed(d_o), call.tiles
    forward, backward = ({"level": level, **more} for more in (found.forward, found.backward))
    scratch = launches.again(call, call.q, stored, residual, **forward)
    back = launches.reverse(call, call.q, scratch, d_o, d_end, residual, states=scratch.states, **backward)
    bound = inverse is not None
    d_q, d_k, d_rate, d_into, d_mix = (
        call_like.new_empty(call_like.shape) for call_like in (call.q, call.k, lr, into, mix)
    )
    _, shared = launches.shared_arguments(x, False, "writers")
    launch(
        _pull.writers, x.programs * x.m, call.q, call.k, scratch.rates if bound else lr, None, into, None,
        scratch.states, scratch.errors, d_o, scratch.d_states, scratch.d_predictions, scratch.d_norms,
        d_k, d_rate, d_into, d_mix, *launches.strides(call.q, call.k, d_o), *call.sizes(),
        BOUND=bound, SOLVE=False, dq=d_q, **forward, **shared,
    )  # fmt: skip
    d_level = lr.new_empty(0) if back.level is None else back.level.sum(-1)
    return [d_q, d_k, back.v, back.lr if bound else d_rate, back.inverse, back.gate, d_into, d_mix, d_level, back.start]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    tensors, d_end = arguments[:9], arguments[11]
    return [arguments[3].new_empty(0) if t is None else t.new_empty(t.shape) for t in (*tensors, d_end)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, bias, link, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.rest = bias, link
    ctx.present = [t is not None for t in inputs[:10]]


def _backward(pull: Any, ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, d_o, d_end, *ctx.rest)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None, None


linked_backward = Operator("linked_backward", _linked_backward, _blank_gradients)
linked = Differentiable("linked", _linked, _blank, _setup, _backward, linked_backward, answers=range(2))

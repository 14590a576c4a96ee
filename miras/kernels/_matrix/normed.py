"""A matrix behind a layer norm, with a fast vector beside it, as an operator of the kernels of one matrix.

Its error is that of the bias at the normed prediction, pulled through the norm. A vector is one more row of the matrix, whose
key is always one. The error of the last tile is an output, for slots that nobody reads again.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import residuals
from miras.kernels._matrix import launches
from miras.kernels._matrix.launches import EVERY, Call, rowed
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.residuals import Residual


def _found(bias: str) -> Residual:
    return residuals.recall(bias)._replace(rowwise=True)


def _normed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    start: Tensor,
    vectors: Tensor | None,
    bias: str,
    eps: float,
    keep: bool,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `miras.kernels._matrix.ops.matrix`, before the norm of the answers.

    Args:
        vectors: ``[B, H, J, O]``, or None where the matrix stands alone.
        eps: of the norm.
        shifted: whether the error is one of values less keys.

    Returns:
        Outputs ``[B, H, T, O]``, stack and vectors at the end, the error of the last tile ``[B, H, C, O]``; stored states.
    """
    call = Call.of(q, k, v, lr, inverse, gate, None, rows, pairs, into, mix, None, None)
    x = call.tiles
    last, kept = start.new_empty(x.B, x.H, x.C, x.O), -(-x.m // EVERY) if keep else 0
    vector_end = start.new_empty(0) if vectors is None else torch.empty_like(vectors)
    stored = start.new_empty(x.B, x.H, 0 if vectors is None else kept, x.J, x.O)
    more: dict[str, Any] = {"NORM": eps, "LAST": True, "last": last, "SHIFTED": shifted}
    if vectors is not None:
        more |= {"VECTOR": True, "vectors": vectors, "vector_end": vector_end, "vector_checkpoints": stored}
    o, end, stack = launches.forward(call, call.q, start, _found(bias), keep, **more)
    return o, end, vector_end, last, stack, stored


def _blank(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, start, vectors, _, _, keep, _ = arguments
    call = Call.of(*tensors[:6], None, *tensors[6:], None, None)
    x = call.tiles
    kept = -(-x.m // EVERY) if keep else 0
    return (
        call.q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2),
        torch.empty_like(start),
        start.new_empty(0) if vectors is None else torch.empty_like(vectors),
        start.new_empty(x.B, x.H, x.C, x.O),
        start.new_empty(x.B, x.H, kept, x.J, x.I, x.O),
        start.new_empty(x.B, x.H, 0 if vectors is None else kept, x.J, x.O),
    )


def _normed_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    stack: Tensor,
    stored: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    d_vectors: Tensor,
    d_last: Tensor,
    bias: str,
    eps: float,
    shifted: bool,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `normed` in their order; an empty tensor for one that is None."""
    call = Call.of(q, k, v, lr, inverse, gate, None, rows, pairs, into, mix, None, None)
    found, d_o, x = _found(bias), rowed(d_o), call.tiles
    none: dict[str, Any] = {}
    seen, after, between, d_start = none, none, none, d_vectors.new_empty(d_vectors.shape)
    if stored.numel():
        states, d_states = (stored.new_empty(x.B, x.H, x.m, x.J, x.O) for _ in range(2))
        seen = {"VECTOR": True, "vector_states": states}
        after = {
            "VECTOR": True,
            "d_vectors": d_vectors.contiguous(),
            "d_vector_states": d_states,
            "d_vector_start": d_start,
        }
        between = seen | {"d_vector_states": d_states}
    starts = {"vectors": stored} if seen else none
    scratch = launches.again(call, call.q, stack, found, NORM=eps, SHIFTED=shifted, **seen, **starts)
    d_last = d_last.contiguous()
    more = {"NORM": eps, "LAST": True, "d_last": d_last, "RESIDUAL": found.residual, "SHIFTED": shifted}
    back = launches.reverse(call, call.q, scratch, d_o, d_end, found, **more, **after)
    if shifted:
        between = between | {"dv": back.v, "SHIFTED": True}
    d = launches.pull(call, scratch, d_o, readers=seen, writers=between)
    d_lr = d.rate if inverse is None else back.lr
    return [d.q, d.k, back.v, d_lr, back.inverse, back.gate, d.rows, d.pairs, d.into, d.mix, back.start, d_start]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    tensors, ends = arguments[:10], arguments[13:15]
    return [arguments[3].new_empty(0) if t is None else t.new_empty(t.shape) for t in (*tensors, *ends)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, bias, eps, _, shifted = inputs
    ctx.save_for_backward(*tensors, *output[4:])
    ctx.rest = bias, eps, shifted
    ctx.present = [t is not None for t in inputs[:12]]


def _backward(
    pull: Any, ctx: Any, d_o: Tensor, d_end: Tensor, d_vectors: Tensor, d_last: Tensor
) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, d_o, d_end, d_vectors, d_last, *ctx.rest)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None, None, None


normed_backward = Operator("normed_backward", _normed_backward, _blank_gradients)
normed = Differentiable("normed", _normed, _blank, _setup, _backward, normed_backward, answers=range(4))

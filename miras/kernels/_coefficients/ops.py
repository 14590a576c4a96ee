"""The coefficients of all tiles as one operator, for filters of at most one slot.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels._coefficients import compact
from miras.kernels._coefficients.compact import Given, formed, lean
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch

WARPS: dict[str, dict[int, int]] = {
    "coefficients": {16: 1, 32: 1, 64: 4},
    "coefficients_backward": {16: 1, 32: 1, 64: 4},
}
"""By the tokens of a tile, 8 for others: more would form the sums of a short tile twice."""

ALIKE = {"enable_fp_fusion": False}
"""Threads that hold copies of one sum are to hold the same bits: each would fuse the last addition with a product of its own."""


def _coefficients(
    like: Tensor,
    log_decay: Tensor | None,
    log_momentum: Tensor | None,
    size: int,
    kind: int,
    nu: float,
    previous: bool,
    solve: bool,
    decayed: bool,
    form: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, pairs, into, mix, key_rows and key_pairs of `miras.kernels._matrix.ops.matrix`; the last two are empty without ``solve``.

    Args:
        like: ``[B, H, T]``.
        log_decay: ``[B, H, T]``; None for no decay.
        log_momentum: ``[B, H, T]``; None for kind 0.
        size: tokens of a tile.
        kind: of the filter, see `miras.kernels._coefficients.gates`.
        nu: of kind 3.
        previous: whether queries read the state before their token.
        solve: whether keys read a state too.
        decayed: whether keys read it after their own decay.
        form: whether pairs may be left to kernels that form them, see `miras.kernels._coefficients.formed`.
        dtype: of pairs.
    """
    x = Given(like, log_decay, log_momentum, size, kind, nu, previous, solve, decayed)
    out = _blank(x, form, dtype)
    if out[1].dim() == 6 or lean(size, kind, dtype):
        compact.forward(x, out)
    else:
        _launched("coefficients", x, dtype, *out)
    return out


def _launched(kernel: str, x: Given, dtype: torch.dtype, *tensors: Tensor) -> None:
    """One of `miras.kernels._coefficients.gates`."""
    from miras.kernels._coefficients import gates

    block = x.flags["BC"]
    launch(
        getattr(gates, kernel), x.tiles, x.log_decay, x.log_momentum, *tensors, x.nu, *x.sizes, **x.flags,
        KIND=x.kind, EXACT=dtype == torch.float32, FULL=x.size == block and x.like.shape[2] % x.size == 0,
        PRECISION=compact.precision(dtype), num_warps=WARPS[kernel].get(block, 8), **ALIKE,
    )  # fmt: skip


def _blank(x: Given, form: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, _ = x.like.shape
    m, J = x.sizes[2], x.flags["J"]
    rows, pairs, new = (B, H, m, J, x.size), (B, H, m, x.size, x.size), x.like.new_empty
    if form and formed(x.kind, x.previous, dtype):  # from two rows of sums, or from nothing where nothing decays
        pairs, dtype = (B, H, m, 1, 2 if x.flags["DECAY"] else 0, x.size), x.like.dtype
    out = new(rows), new(pairs, dtype=dtype), new(rows), new(B, H, m, J, J)
    return *out, new(rows if x.solve else 0), new(pairs if x.solve else 0, dtype=dtype)


def _blank_coefficients(*arguments: Any) -> tuple[Tensor, ...]:
    *given, form, dtype = arguments
    return _blank(Given(*given), form, dtype)


def _coefficients_backward(
    like: Tensor,
    log_decay: Tensor | None,
    log_momentum: Tensor | None,
    size: int,
    kind: int,
    nu: float,
    previous: bool,
    solve: bool,
    decayed: bool,
    grads: list[Tensor],
) -> list[Tensor]:
    """Gradients of the logs."""
    x = Given(like, log_decay, log_momentum, size, kind, nu, previous, solve, decayed)
    grads, found = [g.contiguous() for g in grads], _blank_gradients(*x)
    if grads[1].dim() == 6 or lean(size, kind, grads[1].dtype):
        compact.backward(x, grads, *found)
    else:
        _launched("coefficients_backward", x, grads[1].dtype, *grads, *found)
    return found


def _blank_gradients(
    like: Tensor, log_decay: Tensor | None, log_momentum: Tensor | None, size: int, kind: int, *rest: Any
) -> list[Tensor]:
    return [like.new_empty(like.shape if log_decay is not None else 0), like.new_empty(like.shape if kind else 0)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:9]


def _backward(pull: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    like, log_decay, log_momentum = ctx.saved_tensors
    d_decay, d_momentum = pull(like, log_decay, log_momentum, *ctx.rest, list(grads))
    decay, momentum = (d_decay if log_decay is not None else None), (d_momentum if ctx.rest[1] else None)
    return None, decay, momentum, *[None] * 8


coefficients_backward = Operator("coefficients_backward", _coefficients_backward, _blank_gradients)
coefficients = Differentiable(
    "coefficients", _coefficients, _blank_coefficients, _setup, _backward, coefficients_backward
)

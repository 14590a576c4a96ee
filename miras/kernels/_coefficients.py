"""The coefficients of all tiles as one operator, for filters of at most one slot.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import _compact
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch

WARPS: dict[str, dict[int, int]] = {"coefficients": {16: 1, 32: 1, 64: 4}, "coefficients back": {16: 1, 32: 1, 64: 4}}
"""By the tokens of a tile, 8 for others: more would form the sums of a short tile twice."""


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
    """Rows, pairs, into, mix, key_rows and key_pairs of `miras.kernels._ops.matrix`; the last two are empty without ``solve``.

    Args:
        like: ``[B, H, T]``.
        log_decay: ``[B, H, T]``; None for no decay.
        log_momentum: ``[B, H, T]``; None for kind 0.
        size: tokens of a tile.
        kind: of the filter, see `miras.kernels._gates`.
        nu: of kind 3.
        previous: whether queries read the state before their token.
        solve: whether keys read a state too.
        decayed: whether keys read it after their own decay.
        form: whether pairs may be left to kernels that form them, see `miras.kernels._formed`.
        dtype: of pairs.
    """
    from miras.kernels import _gates

    formed = form and _compact.formed(kind, previous, dtype)
    out = _blank(like, size, kind, solve, dtype, log_decay is not None, formed)
    if formed or _compact.lean(size, kind, dtype):
        _compact.forward(out, like, log_decay, log_momentum, size, kind, previous, solve, decayed)
        return out
    launch(
        _gates.coefficients, _tiles(like, size),
        log_decay, log_momentum, *out, nu, like.shape[2], size, -(-like.shape[2] // size),
        **_options(like, log_decay, size, kind, previous, solve, decayed, dtype, "coefficients"),
    )  # fmt: skip
    return out


def _tiles(like: Tensor, size: int) -> int:
    return like.shape[0] * like.shape[1] * -(-like.shape[2] // size)


def _options(
    like: Tensor,
    log_decay: Tensor | None,
    size: int,
    kind: int,
    previous: bool,
    solve: bool,
    decayed: bool,
    dtype: torch.dtype,
    kernel: str,
) -> dict[str, Any]:
    exact = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    block = max(16, 1 << (size - 1).bit_length())
    return {
        "J": 2 if kind else 1,
        "BC": block,
        "KIND": kind,
        "DECAY": log_decay is not None,
        "PREVIOUS": previous,
        "SOLVE": solve,
        "DECAYED": decayed and log_decay is not None,
        "EXACT": dtype == torch.float32,
        "FULL": size == block and like.shape[2] % size == 0,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": WARPS[kernel].get(block, 8),
    }


def _blank(
    like: Tensor, size: int, kind: int, solve: bool, dtype: torch.dtype, decay: bool, formed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, T = like.shape
    m, J = -(-T // size), 2 if kind else 1
    rows, pairs, mix = (B, H, m, J, size), (B, H, m, size, size), (B, H, m, J, J)
    out = like.new_empty(rows), like.new_empty(pairs, dtype=dtype), like.new_empty(rows), like.new_empty(mix)
    key_rows, key_pairs = like.new_empty(rows if solve else 0), like.new_empty(pairs if solve else 0, dtype=dtype)
    if formed:
        short = _compact.pairs_of(like, size, decay)
        return out[0], short, *out[2:], key_rows, torch.empty_like(short) if solve else key_pairs
    return *out, key_rows, key_pairs


def _blank_coefficients(
    like: Tensor, log_decay: Tensor | None, log_momentum: Tensor | None, size: int, kind: int, *rest: Any
) -> tuple[Tensor, ...]:
    _, previous, solve, _, form, dtype = rest
    formed = form and _compact.formed(kind, previous, dtype)
    return _blank(like, size, kind, solve, dtype, log_decay is not None, formed)


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
    from miras.kernels import _gates

    grads = [g.contiguous() for g in grads]
    d_decay = like.new_empty(like.shape if log_decay is not None else 0)
    d_momentum = like.new_empty(like.shape if kind else 0)
    if grads[1].dim() == 6 or _compact.lean(size, kind, grads[1].dtype):
        how = size, kind, previous, solve, decayed
        _compact.backward(d_decay, d_momentum, grads, like, log_decay, log_momentum, *how)
        return [d_decay, d_momentum]
    launch(
        _gates.coefficients_backward, _tiles(like, size),
        log_decay, log_momentum, *grads, d_decay, d_momentum, nu, like.shape[2], size, -(-like.shape[2] // size),
        **_options(like, log_decay, size, kind, previous, solve, decayed, grads[1].dtype, "coefficients back"),
    )  # fmt: skip
    return [d_decay, d_momentum]


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

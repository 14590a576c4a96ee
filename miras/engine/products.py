r"""The two products that carry nearly all the work, with their backward passes written out.

Autograd would be right and slow: it forms every scaled copy of a wide tensor again. Here row scalings go to the
narrower side and sums are accumulated by the matrix product itself. Both are differentiable any number of times.
A compiler gets the plain forward passes: it fuses them itself.

Shapes: n tokens, P pairs, K slots, I and O the sides of a matrix, ... batch and heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read(
    x: Tensor,
    start: Tensor,
    slots: Tensor | None,
    carry: Tensor,
    of_slots: Tensor | None,
    pairs: Tensor,
    keys: Tensor,
    errors: Tensor,
) -> Tensor:
    """``carry_t x_t A - sum_i of_slots_ti x_t S_i - sum_p pairs_tp (x_t . keys_p) errors_p``, ``[..., n, O]``."""
    product = _Read.forward if torch.compiler.is_compiling() else _Read.apply
    return product(x, start, slots, carry, of_slots, pairs, keys, errors)  # type: ignore[no-any-return]


def write(
    start: Tensor,
    slots: Tensor | None,
    mix: Tensor,
    keys: Tensor,
    errors: Tensor,
    into: Tensor,
    enters: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Memory and slots at the end: row i of ``mix [S_0 = A, S_1, ..., S_K] + (into_i keys)^T errors``.

    ``mix`` is ``[..., 1 + K, 1 + K]``, ``into`` ``[..., 1 + K, P]``; but for those of ``enters`` its rows are zero.
    """
    product = _Write.forward if torch.compiler.is_compiling() else _Write.apply
    rest = () if slots is None else slots.unbind(-3)
    rows = tuple(range(1 + len(rest))) if enters is None else enters
    memory, *after = product(rows, mix, into, keys, errors, start, *rest)
    return memory, torch.stack(after, -3) if after else None


def _scaled(x: Tensor, row: Tensor, matrix: Tensor) -> Tensor:
    """``(row * x) @ matrix`` with the scaling on the narrower side."""
    if x.shape[-1] <= matrix.shape[-1]:
        return (x * row[..., None]) @ matrix
    return (x @ matrix) * row[..., None]


class _Read(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        start: Tensor,
        slots: Tensor | None,
        carry: Tensor,
        of_slots: Tensor | None,
        pairs: Tensor,
        keys: Tensor,
        errors: Tensor,
    ) -> Tensor:
        y = _scaled(x, carry, start)
        if slots is not None and of_slots is not None:
            for i in range(slots.shape[-3]):
                y = y - _scaled(x, of_slots[..., i], slots[..., i, :, :])
        return y - (pairs * (x @ keys.mT)) @ errors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, start, slots, carry, of_slots, pairs, keys, errors = ctx.saved_tensors
        scores, pull = x @ keys.mT, dy @ errors.mT
        d_scores = pairs * pull
        dx = -(d_scores @ keys)
        d_keys = -(d_scores.mT @ x)
        d_errors = -((pairs * scores).mT @ dy)
        d_pairs = -(scores * pull)
        part, d_start, d_carry = _pull(x, start, carry, dy)
        dx = dx + part
        d_slots = d_of_slots = None
        if slots is not None:
            pulled = [_pull(x, slots[..., i, :, :], of_slots[..., i], dy) for i in range(slots.shape[-3])]
            for part, _, _ in pulled:
                dx = dx - part
            d_slots = -torch.stack([w for _, w, _ in pulled], -3)
            d_of_slots = -torch.stack([c for _, _, c in pulled], -1)
        return dx, d_start, d_slots, d_carry, d_of_slots, d_pairs, d_keys, d_errors


def _pull(x: Tensor, matrix: Tensor, row: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``(row * x) @ matrix`` with respect to x, matrix and row."""
    if x.shape[-1] <= dy.shape[-1]:
        back = dy @ matrix.mT
        return back * row[..., None], (x * row[..., None]).mT @ dy, (back * x).sum(-1)
    scaled = dy * row[..., None]
    return scaled @ matrix.mT, x.mT @ scaled, ((x @ matrix) * dy).sum(-1)


class _Write(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: tuple[int, ...], mix: Tensor, into: Tensor, keys: Tensor, errors: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        out = []
        for i, like in enumerate(weights):
            total = _outer(keys, errors, into[..., i, :]) if i in rows else torch.zeros_like(like)
            for j, w in enumerate(weights):
                total = torch.addcmul(total, mix[..., i, j, None, None], w)
            out.append(total)
        return tuple(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rows, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *dw: Tensor) -> tuple[Tensor | None, ...]:
        mix, into, keys, errors, *weights = ctx.saved_tensors
        d_mix = torch.stack([torch.stack([(d * w).sum((-2, -1)) for w in weights], -1) for d in dw], -2)
        d_weights = [sum(mix[..., i, j, None, None] * d for i, d in enumerate(dw)) for j in range(len(weights))]
        d_into, d_keys, d_errors = [], torch.zeros_like(keys), torch.zeros_like(errors)
        for i, d in enumerate(dw):
            row = into[..., i, :]
            if i not in ctx.rows:
                d_into.append(torch.zeros_like(row))
            elif keys.shape[-1] <= errors.shape[-1]:  # row sums and scalings on the narrower side
                back = errors @ d.mT
                d_into.append((back * keys).sum(-1))
                d_keys = torch.addcmul(d_keys, back, row[..., None])
                d_errors = d_errors + (keys * row[..., None]) @ d
            else:
                answers = keys @ d
                d_into.append((answers * errors).sum(-1))
                d_errors = torch.addcmul(d_errors, answers, row[..., None])
                d_keys = d_keys + (errors * row[..., None]) @ d.mT
        return None, d_mix, torch.stack(d_into, -2), d_keys, d_errors, *d_weights  # type: ignore[return-value]


def _outer(keys: Tensor, errors: Tensor, row: Tensor) -> Tensor:
    """``(row * keys)^T errors``, scaling the narrower factor."""
    if keys.shape[-1] <= errors.shape[-1]:
        return (keys * row[..., None]).mT @ errors
    return keys.mT @ (errors * row[..., None])

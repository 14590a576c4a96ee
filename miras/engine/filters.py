"""Linear recurrences along a chunk, as lower-triangular coefficient matrices in log space.

Shapes: n tokens of a chunk, K slots, ... batch and heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Filter(NamedTuple):
    """A linear filter with K slots, in closed form over n tokens: ``U = out_in g + out_slot S``, ``S' = slot_in g + slot_slot S``."""

    out_in: Tensor  # [..., n, n], lower-triangular
    out_slot: Tensor  # [..., n, K]
    slot_in: Tensor  # [..., K, n]
    slot_slot: Tensor  # [..., K, K]


def propagator(log_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Closed form of ``y_t = g_t y_{t-1} + u_t``: ``y = L u + carry * y_0`` from ``log g`` of shape ``[..., n]``.

    ``L[t, s]`` is the product of the gates after s up to t. It is the exponential of a masked cumulative sum, so that
    nothing overflows, underflows harmfully or cancels: the ratio of two cumulative products would do all three.
    """
    n = log_gate.shape[-1]
    after = torch.ones(n, n, dtype=torch.bool, device=log_gate.device).tril(-1)
    between = torch.where(after, log_gate[..., :, None], 0.0).cumsum(-2)
    return between.exp().tril(), log_gate.cumsum(-1).exp()


def last_row(log_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Of what `propagator` gives, what remains after the last token alone: ``[..., 1, n]`` and ``[..., 1]``."""
    since = log_gate.flip(-1).cumsum(-1).flip(-1)
    return F.pad(since[..., 1:], (0, 1)).exp().unsqueeze(-2), since[..., :1].exp()


def scan(log_gate: Tensor, u: Tensor, dim: int) -> Tensor:
    """``y_t = g_t y_{t-1} + u_t`` from ``y_0 = 0`` for gates that differ per channel: log-depth, no division.

    ``log_gate`` broadcasts to ``u``; both run along ``dim``.
    """
    n = u.shape[dim]
    shift = 1
    while shift < n:
        past_u, past_g = u.narrow(dim, 0, n - shift), log_gate.narrow(dim, 0, n - shift)
        head_u, head_g = u.narrow(dim, 0, shift), log_gate.narrow(dim, 0, shift)
        tail_u, tail_g = u.narrow(dim, shift, n - shift), log_gate.narrow(dim, shift, n - shift)
        u = torch.cat([head_u, tail_u + tail_g.exp() * past_u], dim)
        log_gate = torch.cat([head_g, tail_g + past_g], dim)
        shift *= 2
    return u


def shift_down(x: Tensor, first: float, dim: int) -> Tensor:
    """Moves rows one token later and puts ``first`` in the first row: coefficients of what token t-1 left behind."""
    top = torch.full_like(x.narrow(dim, 0, 1), first)
    return torch.cat([top, x.narrow(dim, 0, x.shape[dim] - 1)], dim)


BLOCK = 16
"""Tokens whose channel-wise ratios of decays are formed directly; between blocks they factor through a reference point."""


def channel_scores(x: Tensor, y: Tensor, z_row: Tensor, z: Tensor, strict: bool) -> Tensor:
    """``sum_i x[t,i] y[s,i] exp(z_row[t,i] - z[s,i])`` for ``s <= t`` (``s < t`` if strict), ``[..., n, n]``.

    ``z`` is the cumulative log decay and ``z_row`` the same, or one token earlier when strict, so every exponent formed
    is at most zero.
    """
    rows = []
    for r in range(0, x.shape[-2], BLOCK):
        i = slice(r, r + BLOCK)
        diagonal = _tril(z_row[..., i, None, :] - z[..., None, i, :], strict)
        row = [torch.einsum("...ti,...si,...tsi->...ts", x[..., i, :], y[..., i, :], diagonal)]
        if r:
            zb = z[..., r - 1 : r, :]
            past = (y[..., :r, :] * (zb - z[..., :r, :]).exp()).mT
            row.insert(0, (x[..., i, :] * (z_row[..., i, :] - zb).exp()) @ past)
        width = x.shape[-2] - r - row[-1].shape[-1]
        row.append(x.new_zeros(*row[-1].shape[:-1], width))
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


def channel_mix(scores: Tensor, d: Tensor, z_row: Tensor, z: Tensor, strict: bool) -> Tensor:
    """``sum_s scores[t,s] exp(z_row[t,o] - z[s,o]) d[s,o]`` over ``s <= t`` (``s < t`` if strict), ``[..., n, O]``."""
    rows = []
    for r in range(0, d.shape[-2], BLOCK):
        i = slice(r, r + BLOCK)
        diagonal = _tril(z_row[..., i, None, :] - z[..., None, i, :], strict)
        row = torch.einsum("...ts,...so,...tso->...to", scores[..., i, i], d[..., i, :], diagonal)
        if r:
            zb = z[..., r - 1 : r, :]
            past = d[..., :r, :] * (zb - z[..., :r, :]).exp()
            row = row + (z_row[..., i, :] - zb).exp() * (scores[..., i, :r] @ past)
        rows.append(row)
    return torch.cat(rows, -2)


def _tril(log_ratio: Tensor, strict: bool) -> Tensor:
    """``exp`` on the lower triangle of dims (-3, -2), zero above; masked before the exponential, which may overflow."""
    n = log_ratio.shape[-2]
    keep = torch.ones(n, n, dtype=torch.bool, device=log_ratio.device).tril(-1 if strict else 0)[..., None]
    return torch.where(keep, torch.where(keep, log_ratio, 0.0).exp(), 0.0)

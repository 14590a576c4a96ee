"""What a fast gain and shift make of a perceptron's reads, in PyTorch: they come after the norm, for all chunks of a group at once.

A query at token t meets ``[gain_t, shift_t] = sum_j rows_tj g_j - sum_p pairs_tp r_p [e_p y_p, e_p]`` with the g before its chunk, and
answers ``gain_t norm(out_t) + shift_t``, plus itself where the key is added. Here too are the gradients of coefficients and rates
from what is written, ``g_i' = sum_j mix_ij g_j + sum_p into_ip r_p [e_p y_p, e_p]``. For the rest see `miras.kernels._mlp.gains`.

Shapes: b batch times heads, T tokens in N chunks of C, n of them in a group, J memory and slots, O channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from miras.architectures import layer_norm
from miras.kernels._mlp.launch import Given, Recipe, Seen

TINY = 1e-30
"""Under the root of gradient norms, as in `miras.kernels._mlp.parts`."""


class Late(NamedTuple):
    """Gradients, for the reverse scan and from it, ``[b, n, ...]``; nothing without a gain."""

    seen: Tensor | None  # [.., J, 2 O]: of gain and shift before a chunk, from what queries read
    errors: Tensor | None  # [.., C, 2 O]: of what is written, from what queries read
    gains: Tensor | None  # [.., J, 2 O]: of gain and shift after a chunk

    @staticmethod
    def of(seen: Seen) -> Late:
        return Late(*(None if t is None else torch.empty_like(t) for t in (seen.gains, seen.errors, seen.gains)))


class Span(NamedTuple):
    """A group."""

    first: int
    count: int
    total: int

    def chunks(self, t: Tensor) -> Tensor:
        """Its part of ``[b, N, ...]``."""
        return t[:, self.first : self.first + self.count]

    def tokens(self, t: Tensor) -> Tensor:
        """Its part of ``[b, T, ...]``, ``[b, n, C, ...]``."""
        return self.chunks(t.unflatten(1, (self.total, -1)))

    def local(self, t: Tensor | None) -> Tensor:
        """Of room for the largest group, the beginning that this one fills."""
        assert t is not None
        return t.flatten(0, 1)[: len(t) * self.count].unflatten(0, (len(t), self.count))


class Written(NamedTuple):
    """What tokens write to gain and shift."""

    errors: Tensor  # [b, n, C, 2 O]
    norms: Tensor | None  # [b, n, C, 2]: of steps that are bounded
    damp: Tensor  # [b, n, C, 2 or 1]: what their rate is divided by
    rated: Tensor  # [b, n, C, 2 O]

    @staticmethod
    def of(x: Given, seen: Seen, at: Span) -> Written:
        errors = at.local(seen.errors)
        lr = at.tokens(x.lr).unsqueeze(-1)
        norms, damp = None, torch.ones_like(lr)
        if x.inverse is not None:
            norms = (_each(errors).square().sum(-1) + TINY).sqrt()
            damp = 1 + norms * lr * at.tokens(x.inverse).unsqueeze(-1)
        return Written(errors, norms, damp, (_each(errors) * (lr / damp).unsqueeze(-1)).flatten(-2))


def _each(t: Tensor) -> Tensor:
    """Gain and shift apart, ``[.., 2, O]``."""
    return t.unflatten(-1, (2, -1))


def _met(x: Given, seen: Seen, written: Written, at: Span) -> tuple[Tensor, Tensor]:
    """The gain and the shift that every query meets."""
    rows, pairs = at.chunks(x.rows), at.chunks(x.pairs).to(x.rows.dtype)
    gain, shift = (rows.mT @ at.local(seen.gains) - pairs @ written.rated).chunk(2, -1)
    return gain, shift


def read(x: Given, how: Recipe, out: Tensor, answer: Tensor, seen: Seen, at: Span) -> None:
    """Fills in the answers, from what queries get before the norm."""
    gain, shift = _met(x, seen, Written.of(x, seen, at), at)
    y = gain * layer_norm(at.tokens(out), how.eps) + shift
    at.tokens(answer).copy_(y + at.tokens(x.q) if how.residual else y)


def read_backward(
    x: Given, how: Recipe, out: Tensor, d_answer: Tensor, d_y: Tensor, seen: Seen, late: Late, at: Span
) -> tuple[Tensor, Tensor]:
    """Fills in the gradients of the normed reads, and those which the reverse scan takes.

    Returns:
        Gradients of rows and pairs.
    """
    written = Written.of(x, seen, at)
    d = at.tokens(d_answer).to(d_y.dtype)
    at.tokens(d_y).copy_(d * _met(x, seen, written, at)[0])
    d_met = torch.cat([d * layer_norm(at.tokens(out), how.eps), d], -1)
    at.local(late.seen).copy_(at.chunks(x.rows) @ d_met)
    at.local(late.errors).copy_(-(at.chunks(x.pairs).to(d_met.dtype).mT @ d_met))
    return at.local(seen.gains) @ d_met.mT, -(d_met @ written.rated.mT)


def write_backward(x: Given, d: Given, read: tuple[Tensor, Tensor], seen: Seen, late: Late, at: Span) -> None:
    """Adds to the gradients of coefficients and rates, once the reverse scan is through."""
    written, after = Written.of(x, seen, at), at.local(late.gains)
    added = *read, after @ written.rated.mT, after @ at.local(seen.gains).mT
    for t, more in zip((d.rows, d.pairs, d.into, d.mix), added, strict=True):
        at.chunks(t).add_(more)
    d_rated = at.local(late.errors) + at.chunks(x.into).mT @ after
    shrink = _each(d_rated * written.errors).sum(-1) / written.damp.square()
    at.tokens(d.lr).add_(shrink.sum(-1))
    if d.inverse is not None and written.norms is not None:
        at.tokens(d.inverse).sub_((shrink * written.norms).sum(-1) * at.tokens(x.lr).square())

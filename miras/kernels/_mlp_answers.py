r"""What a fast gain and shift make of a perceptron's reads, in PyTorch: it comes after the norm, and is the same for all chunks.

A query at token t meets ``[gain_t, shift_t] = sum_j rows_tj g_j - sum_p pairs_tp r_p [e_p y_p, e_p]``, with the g before its chunk, and
answers ``gain_t norm(out_t) + shift_t``, plus itself where the key is added. Here too are the gradients of coefficients and rates
from what is written, ``g_i' = sum_j mix_ij g_j + sum_p into_ip r_p [e_p y_p, e_p]``. Formulas for the rest: `miras.kernels._mlp_gains`.

Shapes: b batch times heads, n chunks of a group, C tokens, J memory and slots, O channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from miras.architectures import layer_norm
from miras.kernels._mlp_launch import Given, Recipe, Seen

TINY = 1e-30
"""Under the root of gradient norms, as in `miras.kernels._mlp_parts`."""


class Late(NamedTuple):
    """Gradients, for the reverse scan and from it, ``[b, n, ...]``; all of them nothing without a gain."""

    seen: Tensor | None  # [.., J, 2 O]: of gain and shift before a chunk, from what queries read
    errors: Tensor | None  # [.., C, 2 O]: of their rated errors, from what queries read
    gains: Tensor | None  # [.., J, 2 O]: of gain and shift after a chunk

    @staticmethod
    def of(seen: Seen) -> Late:
        wanted = seen.gains, seen.errors, seen.gains
        return Late(*(None if t is None else torch.empty_like(t) for t in wanted))


class _Group:
    """The chunks of a group."""

    def __init__(self, x: Given, seen: Seen, group: tuple[int, int, int]):
        self.first, self.count, self.total = group
        self.rows, self.pairs, self.into = self.chunks(x.rows), self.chunks(x.pairs).to(x.rows.dtype), self.chunks(x.into)
        assert seen.gains is not None and seen.errors is not None
        self.gains, self.errors = self.local(seen.gains), self.local(seen.errors)
        self.lr, self.inverse = self.tokens(x.lr), None if x.inverse is None else self.tokens(x.inverse)
        self.norms = (self.errors.unflatten(-1, (2, -1)).square().sum(-1) + TINY).sqrt()  # [b, n, C, 2]
        self.rates = self.lr.unsqueeze(-1).expand_as(self.norms)
        if self.inverse is not None:
            self.rates = self.rates / (1 + self.norms * (self.lr * self.inverse).unsqueeze(-1))
        self.rated = self.errors * self.each(self.rates)

    def chunks(self, t: Tensor) -> Tensor:
        """Of ``[b, N, ...]``."""
        return t[:, self.first : self.first + self.count]

    def tokens(self, t: Tensor) -> Tensor:
        """Of ``[b, T, ...]``, cut."""
        return self.chunks(t.unflatten(1, (self.total, -1)))

    def local(self, t: Tensor) -> Tensor:
        """Of what was made for the largest group; a smaller one fills its beginning."""
        return t.flatten(0, 1)[: len(t) * self.count].unflatten(0, (len(t), self.count))

    def each(self, rates: Tensor) -> Tensor:
        """``[.., 2]`` for all channels of gain and shift."""
        return rates.repeat_interleave(self.errors.shape[-1] // 2, -1)

    def met(self) -> list[Tensor]:
        """The gain and the shift that every token meets."""
        return list((self.rows.mT @ self.gains - self.pairs @ self.rated).chunk(2, -1))


def read(x: Given, how: Recipe, out: Tensor, answer: Tensor, seen: Seen, group: tuple[int, int, int]) -> None:
    """Fills in the answers of a group, from what its queries get before the norm."""
    at = _Group(x, seen, group)
    gain, shift = at.met()
    y = gain * layer_norm(at.tokens(out), how.eps) + shift
    at.tokens(answer).copy_(y + at.tokens(x.q) if how.residual else y)


def read_backward(
    x: Given, how: Recipe, out: Tensor, d_answer: Tensor, d_y: Tensor, seen: Seen, late: Late, group: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Fills in the gradients of the normed reads and what the reverse scan takes.

    Returns:
        Gradients of rows and pairs.
    """
    at = _Group(x, seen, group)
    assert late.seen is not None and late.errors is not None
    d = at.tokens(d_answer).to(d_y.dtype)
    at.tokens(d_y).copy_(d * at.met()[0])
    d_met = torch.cat([d * layer_norm(at.tokens(out), how.eps), d], -1)
    at.local(late.seen).copy_(at.rows @ d_met)
    at.local(late.errors).copy_(-(at.pairs.mT @ d_met))
    return at.gains @ d_met.mT, -(d_met @ at.rated.mT)


def write_backward(x: Given, d: Given, read: tuple[Tensor, Tensor], seen: Seen, late: Late, group: tuple[int, int, int]) -> None:
    """Adds to the gradients of coefficients and rates, once the reverse scan is through."""
    at = _Group(x, seen, group)
    assert late.errors is not None and late.gains is not None
    after = at.local(late.gains)
    d_rated = at.local(late.errors) + at.into.mT @ after
    for t, more in zip((d.rows, d.pairs, d.into, d.mix), (*read, after @ at.rated.mT, after @ at.gains.mT), strict=True):
        at.chunks(t).add_(more)
    d_rates = (d_rated * at.errors).unflatten(-1, (2, -1)).sum(-1)
    if at.inverse is None:
        at.tokens(d.lr).add_(d_rates.sum(-1))
        return
    assert d.inverse is not None
    shrink = d_rates / (1 + at.norms * (at.lr * at.inverse).unsqueeze(-1)).square()
    at.tokens(d.lr).add_(shrink.sum(-1))
    at.tokens(d.inverse).sub_((shrink * at.norms).sum(-1) * at.lr.square())

"""Where the tokens of a call stand in their rows.

Shapes: B rows, T tokens of this call, R = 1 if all rows stand at the same position, else B.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from miras.state import Weights


class Place(NamedTuple):
    """Positions of a call's tokens, and what layers hand on about them. In every row the tokens that count come first.

    Attributes:
        seen: how many tokens each row has seen before this call.
        lengths: how many of this call's tokens count in each row; what follows them is padding.
        tokens: T.
        values: what the first attention of the model took these tokens' values to be, ``[B, T, G, D]``, where later
            ones mix them in (`AttentionSpec.value_residual`).
        before: the stream in front of every layer so far, ``[B, T, dim]``, where later ones look back (`TitansConfig.views`).
        views: what a layer's memory takes its queries, keys and values from, if not from its input.
        below: the weights from which the last memory so far started each of this call's pieces (`WeightResidual`).
    """

    seen: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: int
    values: Tensor | None = None
    before: tuple[Tensor, ...] = ()
    views: tuple[Tensor, Tensor, Tensor] | None = None
    below: tuple[Weights, ...] = ()

    @classmethod
    def of(cls, seen: tuple[int, ...], tokens: int) -> Place:
        """A call without padding."""
        return cls(seen, (tokens,) * len(seen), tokens)

    @property
    def is_full(self) -> bool:
        """Whether no row is padded."""
        return min(self.lengths) == self.tokens

    @property
    def is_first(self) -> bool:
        """Whether no row has seen anything."""
        return max(self.seen) == 0

    @property
    def after(self) -> tuple[int, ...]:
        """Tokens that every row has seen after this call."""
        return tuple(s + n for s, n in zip(self.seen, self.lengths, strict=True))

    def offset(self, device: torch.device) -> Tensor:
        """``seen`` as a tensor ``[R, 1]``, made on the device if R is 1: a graph that is being recorded can copy nothing there."""
        if len(set(self.seen)) == 1:
            return torch.full((1, 1), self.seen[0], device=device)
        return torch.tensor(self.seen, device=device)[:, None]

    def positions(self, device: torch.device) -> Tensor:
        """Positions ``[R, T]`` of the tokens in their rows."""
        return self.offset(device) + torch.arange(self.tokens, device=device)

    def mask(self, device: torch.device) -> Tensor | None:
        """``[B, T]``, False for padding; None if there is none."""
        if self.is_full:
            return None
        return torch.arange(self.tokens, device=device) < torch.tensor(self.lengths, device=device)[:, None]

    def pieces(self, every: int) -> Iterator[tuple[slice, Place]]:
        """Cuts the call wherever some row comes to a multiple of ``every``."""
        ends = {end for s in self.seen for end in range(every - s % every, self.tokens, every)}
        cuts = [0, *sorted(ends), self.tokens]
        for a, b in pairwise(cuts):
            seen = tuple(s + min(n, a) for s, n in zip(self.seen, self.lengths, strict=True))
            lengths = tuple(min(max(n - a, 0), b - a) for n in self.lengths)
            values = None if self.values is None else self.values[:, a:b]
            views = None if self.views is None else tuple(z[:, a:b] for z in self.views)
            yield slice(a, b), Place(seen, lengths, b - a, values, views=views)  # type: ignore[arg-type]


def packed_left(x: Tensor, mask: Tensor) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Rows with their kept tokens first, how many each has, and the order ``[B, T]`` they were taken in."""
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    lengths = tuple(int(n) for n in mask.sum(1).tolist())
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x)), lengths, order


def unpacked(x: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    """The inverse of `packed_left`, zero at the tokens that were skipped."""
    back = torch.argsort(order, dim=1)[..., None].expand_as(x)
    return x.gather(1, back) * mask[..., None]

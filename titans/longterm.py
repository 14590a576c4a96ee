"""Learned tokens in front of every segment of the stream, which layers then process like any others.

They are what other implementations of Titans call long-term memory tokens: unlike persistent tokens they pass through
the layers, so that a segment's first positions can hold what the memory retrieved.

Shapes: B rows, T tokens of a call, L learned tokens, C tokens of a segment without them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from titans.place import Place


def within(seen: int, count: int, segment: int) -> int:
    """Tokens of the longer stream before the next one, after ``seen`` tokens of the shorter."""
    return seen + count * -(-seen // segment)


def inserted(x: Tensor, tokens: Tensor, segment: int, place: Place) -> tuple[Tensor, Place, Tensor]:
    """The longer stream.

    Args:
        x: ``[B, T, dim]``.
        tokens: ``[L, dim]``.
        segment: C.
        place: where x stands in the shorter stream.

    Returns:
        The tokens of the longer stream, where they stand in it, and which of them are those of x, ``[B, T]``.
    """
    count, device = len(tokens), x.device
    seen = tuple(within(s, count, segment) for s in place.seen)
    ends = (within(s, count, segment) for s in place.after)
    lengths = tuple(end - begin for begin, end in zip(seen, ends, strict=True))
    longer = Place(seen, lengths, max(lengths))
    begin = torch.tensor(seen, device=device)[:, None]
    position = begin + torch.arange(longer.tokens, device=device)
    turn, offset = position // (segment + count), position % (segment + count)
    short = turn * segment + offset - count - torch.tensor(place.seen, device=device)[:, None]
    source = torch.where(offset < count, x.shape[1] + offset, short.clamp(0, x.shape[1] - 1))
    both = torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], 1)
    mine = torch.arange(x.shape[1], device=device) + torch.tensor(place.seen, device=device)[:, None]
    where = mine + count * (mine // segment + 1) - begin
    return take(both, source), longer, where.clamp_max(longer.tokens - 1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``index [B, n]`` of ``x [B, T, dim]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))

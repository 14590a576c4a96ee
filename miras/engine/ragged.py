"""Rows that differ in length or phase: masked tokens are taken out, packed documents apart, and equals run together.

Shapes: B rows in, R rows of a group, L tokens kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from miras.engine.problem import Inputs
from miras.state import MemoryState

Row = tuple[int, Tensor]
"""A row of the batch and the positions of the tokens a state sees of it."""


def rows(x: Inputs, mask: Tensor | None, cu_seqlens: Tensor | None) -> list[Row]:
    """One entry per state: the row it reads and which of its tokens."""
    everything = torch.arange(x.length, device=x.q.device)
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        return [(0, everything[a:b]) for a, b in pairwise(bounds)]
    if mask is not None:
        return [(r, everything[mask[r]]) for r in range(mask.shape[0])]
    return [(r, everything) for r in range(x.q.shape[0])]


def run(
    x: Inputs,
    state: MemoryState,
    go: Callable[[Inputs, MemoryState], tuple[Tensor, MemoryState]],
    entries: Sequence[Row],
) -> tuple[Tensor, MemoryState]:
    """Runs all entries, those of equal phase and length as one batch; outputs of skipped tokens are zero."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (_, kept) in enumerate(entries):
        groups[state.phase[i], len(kept)].append(i)
    y = x.v.new_zeros(*x.q.shape[:3], x.v.shape[-1])
    order: list[int] = []
    after: list[MemoryState] = []
    for (_, length), members in groups.items():
        before = state.select(members)
        order += members
        if length == 0:
            after.append(before)
            continue
        row = torch.tensor([entries[i][0] for i in members], device=x.q.device)[:, None]
        position = torch.stack([entries[i][1] for i in members])
        out, end = go(_take(x, row, position), before)
        y = _put(y, row, position, out)
        after.append(end)
    back = sorted(range(len(order)), key=order.__getitem__)
    return y, MemoryState.cat(after).select(back)


def by_phase(state: MemoryState) -> list[list[int]]:
    """Rows that are in the same phase, together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, phase in enumerate(state.phase):
        groups[phase].append(row)
    return list(groups.values())


def _take(x: Inputs, row: Tensor, position: Tensor) -> Inputs:
    """Rows and positions of every tensor, ``[R, H, L, ...]``."""
    n = x.pairs
    pair_position = (position[..., None] * n + torch.arange(n, device=position.device)).flatten(1)

    def take(t: Tensor, where: Tensor) -> Tensor:
        return t.transpose(1, 2)[row, where].transpose(1, 2)

    return Inputs(
        take(x.q, position),
        take(x.k, pair_position),
        take(x.v, pair_position),
        {g: take(t, position) for g, t in x.token.items()},
        {g: take(t, pair_position) for g, t in x.pair.items()},
    )


def _put(y: Tensor, row: Tensor, position: Tensor, out: Tensor) -> Tensor:
    """``y`` with ``out`` ``[R, H, L, D]`` at rows and positions."""
    return y.transpose(1, 2).index_put((row.expand_as(position), position), out.transpose(1, 2)).transpose(1, 2)

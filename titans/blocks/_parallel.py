"""Mixers that run attention and memory side by side on the same input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from miras import Memory
from titans.attention import Attention
from titans.blocks._base import Gating, Mixer, State, tensors_of
from titans.blocks._single import LMM
from titans.place import Place


class SideBySide(Mixer):
    """Attention and memory on the same input, joined; both see the same persistent tokens.

    Args:
        memory: any `miras.Memory`.
        attention: what is seen.
        persistent: P.
        join: makes one output of the attention's and the memory's, given their width.
    """

    def __init__(self, memory: Memory, attention: Attention, persistent: int, join: Callable[[int], nn.Module]):
        super().__init__()
        self.inner, self.attention = LMM(memory, persistent), attention
        self.join = join(attention.dim)

    def start(self, batch: int) -> State:
        """The memory after the persistent tokens; nothing seen."""
        return self.inner.start(batch) | self.attention.start(batch)

    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """Both, joined."""
        y, seen = self.attention(x, tensors_of(state), place, prefix=self.inner.persistent.tokens)
        m, after = self.inner(x, state, place)
        return self.join(y, m), after | seen

    def begin(self, x: Tensor, place: Place) -> tuple[Tensor, State]:
        """As `LMM.begin`, joined with attention."""
        y, seen = self.attention(x, self.attention.start(len(x)), place, prefix=self.inner.persistent.tokens)
        m, after = self.inner.begin(x, place)
        return self.join(y, m), after | seen


class MAG(SideBySide):
    r"""Memory as a gate: $o=\mathrm{SW\text{-}Attn}^*([p\,\|\,x])\otimes\mathcal M([p\,\|\,x])$ (Titans Eq. 26-28)."""

    def __init__(self, memory: Memory, attention: Attention, persistent: int = 0):
        super().__init__(memory, attention, persistent, Gating)


class Sum(nn.Module):
    r"""$y+s\odot m$ with a learned gain per channel, 1 at first."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        """Two ``[B, T, dim]`` in, one out."""
        return y + self.scale * m


class Parallel(SideBySide):
    r"""$o=\mathrm{SW\text{-}Attn}([p\,\|\,x])+s\odot\mathcal M([p\,\|\,x])$: the sum of LaCT (arXiv 2505.23884 §3.2).

    There the two branches share their projections; here each has its own.
    """

    def __init__(self, memory: Memory, attention: Attention, persistent: int = 0):
        super().__init__(memory, attention, persistent, Sum)

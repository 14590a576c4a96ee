"""Mixers of one kind: a memory alone, an attention alone, and the two in a row."""

from __future__ import annotations

import torch
from torch import Tensor

from miras import Memory, MemoryState
from titans.attention import Attention
from titans.blocks._base import Mixer, Persistent, State, memory_of, tensors_of
from titans.place import Place


class LMM(Mixer):
    r"""The memory alone: $y=\mathcal M([p\,\|\,x])$ (Titans §4.3 "LMM"; the layer of the MIRAS block with P = 0).

    Args:
        memory: any `miras.Memory`.
        persistent: P, tokens that every memory reads before its first; their outputs are dropped.
    """

    def __init__(self, memory: Memory, persistent: int = 0):
        super().__init__()
        self.memory, self.persistent = memory, Persistent(persistent, memory.dim)

    def start(self, batch: int) -> State:
        """The learned start, after the persistent tokens."""
        return {"memory": self.primed(batch)[1]}

    def primed(self, batch: int) -> tuple[Tensor | None, MemoryState]:
        """What the memory answers to the persistent tokens, ``[B, P, dim]`` or None, and its state after them."""
        tokens, state = self.persistent.rows(batch), self.memory.initial_state(batch)
        return (None, state) if tokens is None else self.memory(tokens, state)

    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """Writes and reads."""
        y, after = self.memory(x, memory_of(state), mask=place.mask(x.device), views=place.views)
        return y, {"memory": after}

    def begin(self, x: Tensor, place: Place) -> tuple[Tensor, State]:
        """Persistent tokens and x in one line: two passes over parts of chunks, slow on a device, are saved."""
        _, y, after = self.behind_persistent(x, place)
        return y, {"memory": after}

    def behind_persistent(self, x: Tensor, place: Place) -> tuple[Tensor | None, Tensor, MemoryState]:
        """Answers to the persistent tokens (None if there are none) and to x, and the state, from the learned start."""
        tokens = self.persistent.rows(len(x))
        if tokens is None or not place.is_full:  # a mask costs more than it would save
            prefix, state = self.primed(len(x))
            y, after = self.memory(x, state, mask=place.mask(x.device), views=place.views)
            return prefix, y, after
        line, *views = (torch.cat([tokens, z], 1) for z in (x, *(place.views or ())))
        y, after = self.memory(line, views=tuple(views) if views else None)
        prefix, y = y.split([tokens.shape[1], x.shape[1]], 1)
        return prefix, y, after


class SelfAttention(Mixer):
    r"""Attention alone, $y=\mathrm{Attn}([p\,\|\,x])$, over a window, a segment or everything.

    Args:
        attention: what is seen.
        persistent: P, tokens that every token sees.
    """

    def __init__(self, attention: Attention, persistent: int = 0):
        super().__init__()
        self.attention, self.persistent = attention, Persistent(persistent, attention.dim)

    def start(self, batch: int) -> State:
        """Nothing seen."""
        return dict(self.attention.start(batch))

    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """Attends."""
        y, after = self.attention(x, tensors_of(state), place, prefix=self.persistent.tokens)
        return y, dict(after)


class MAL(Mixer):
    r"""Memory as a layer: $y=\mathcal M([p\,\|\,x])$, $o=\mathrm{SW\text{-}Attn}(y)$ (Titans Eq. 29-31).

    The memory's answers to the persistent tokens are the prefix that every token sees.
    """

    def __init__(self, memory: Memory, attention: Attention, persistent: int = 0):
        super().__init__()
        self.inner, self.attention = LMM(memory, persistent), attention

    def start(self, batch: int) -> State:
        """The memory after the persistent tokens, and its answers to them."""
        prefix, memory = self.inner.primed(batch)
        state: State = {"memory": memory} | self.attention.start(batch)
        return state if prefix is None else state | {"prefix": prefix}

    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """Remembers, then attends."""
        y, after = self.inner(x, state, place)
        prefix = tensors_of(state).get("prefix")
        o, seen = self.attention(y, tensors_of(state), place, prefix=prefix)
        return o, after | seen | ({} if prefix is None else {"prefix": prefix})

    def begin(self, x: Tensor, place: Place) -> tuple[Tensor, State]:
        """As `LMM.begin`, then attends."""
        prefix, y, memory = self.inner.behind_persistent(x, place)
        o, seen = self.attention(y, dict(self.attention.start(len(x))), place, prefix=prefix)
        return o, {"memory": memory} | seen | ({} if prefix is None else {"prefix": prefix})

"""Several memories behind one call: what a `Memory` holds where a single recurrence is not enough.

Shapes: B batch, T tokens, H heads, D channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.state import MemoryState

Gates = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Composite(AssociativeMemory):
    """Base of the cores that hold several memories; ``spec`` is that of the main one, whose state is the part ``main_part``.

    Its state is one `MemoryState`, in which the names of every memory go under its own and the phase counts tokens for all
    of them. A composite defines how rows in the same phase are read and written; where they are not in the same, or a mask
    skips tokens, rows go one by one.
    """

    main_part: ClassVar[str] = "main"

    @property
    def main(self) -> AssociativeMemory:
        """The memory of ``spec`` by itself."""
        return AssociativeMemory(self.spec, self.path, self.tolerance)

    def surprise(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState) -> Tensor:
        """The inner loss of the main memory, as far as the given keys and values are its own."""
        return self.main.surprise(q, k, v, gates, state.part(self.main_part, self.spec.chunk_size))

    def width(self, d_key: int, d_value: int) -> int:
        """Channels of an answer, for keys and values of these widths."""
        return d_value

    @abstractmethod
    def run(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor], state: MemoryState
    ) -> tuple[Tensor, MemoryState]:
        """Reads and writes whole rows, all in the same phase; gates are tensors ``[B, T, ...]``."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """As `AssociativeMemory`, from a state that `initial_state` or an earlier call returned."""
        if state is None:
            raise ValueError("several memories cannot start from nothing: pass state=memory.initial_state(...)")
        if cu_seqlens is not None:
            raise ValueError("several memories take packed documents as rows of a batch, with a mask")
        batch, length = q.shape[:2]
        wide = torch.promote_types(q.dtype, torch.float32)
        tensors = {g: torch.as_tensor(x, dtype=wide, device=q.device) for g, x in gates.items()}
        tensors = {g: (x if x.dim() else x.view(1, 1, 1)) for g, x in tensors.items()}
        tensors = {g: x.expand(batch, length, *x.shape[2:]) for g, x in tensors.items()}
        if mask is None and len(set(state.phase)) == 1 and length:
            return self.run(q, k, v, tensors, state)
        outputs, states = [], []
        for row in range(batch):
            keep = torch.ones_like(q[row, :, 0, 0], dtype=torch.bool) if mask is None else mask[row]
            y, after = v.new_zeros(length, q.shape[2], self.width(q.shape[-1], v.shape[-1])), state.select([row])
            if keep.any():
                cut = {g: x[row : row + 1, keep] for g, x in tensors.items()}
                some, after = self.run(q[row, keep][None], k[row, keep][None], v[row, keep][None], cut, after)
                y = y.index_put((keep.nonzero()[:, 0],), some[0])
            outputs.append(y)
            states.append(after)
        return torch.stack(outputs), MemoryState.cat(states)

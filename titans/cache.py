"""What a model remembers between calls: one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miras import MemoryState
from titans.blocks import State

Form = tuple[tuple[dict[str, tuple[int, ...]], ...], ...]


class ModelCache(NamedTuple):
    """Memories, windows and positions of all layers. A call takes one and returns a new one; nothing changes in place.

    Attributes:
        layers: the states of every layer's mixers.
        seen: tokens each row has seen.
    """

    layers: tuple[tuple[State, ...], ...]
    seen: tuple[int, ...]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.seen)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for layer in self.layers for state in layer for x in state.values())

    def form(self) -> Form:
        """What there is for a row, whatever the rows are and have seen: names and sizes of every mixer's tensors."""
        return tuple(tuple(_form(state) for state in layer) for layer in self.layers)

    def map(self, fn: Callable[[Tensor], Tensor]) -> ModelCache:
        """The cache with ``fn`` applied to every tensor."""
        return self._each(lambda x: x.map(fn) if isinstance(x, MemoryState) else fn(x))

    def detach(self) -> ModelCache:
        """The same numbers, cut from the graph."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> ModelCache:
        """The cache on another device."""
        return self.map(lambda x: x.to(device))

    def fork(self) -> ModelCache:
        """A copy that shares no storage."""
        return self.map(Tensor.clone)

    def select(self, rows: Sequence[int]) -> ModelCache:
        """Rows, in that order and with repetitions: beam search, or dropping finished rows."""
        for row in rows:
            if not 0 <= row < self.batch:
                raise ValueError(f"row {row} is not in a cache of {self.batch} rows")

        def take(x: Tensor | MemoryState) -> Tensor | MemoryState:
            if isinstance(x, MemoryState):
                return x.select(rows)
            return x.index_select(0, torch.tensor(list(rows), dtype=torch.long, device=x.device))

        return self._each(take)._replace(seen=tuple(self.seen[row] for row in rows))

    def tensors(self) -> dict[str, Tensor]:
        """Flat tensors for safetensors; `from_tensors` reads them back."""
        flat: dict[str, Tensor] = {"seen": torch.tensor(self.seen)}
        for i, layer in enumerate(self.layers):
            for j, state in enumerate(layer):
                for name, x in state.items():
                    if isinstance(x, MemoryState):
                        flat |= {f"{i}/{j}/{name}//{n}": t for n, t in x.tensors().items()}
                    else:
                        flat[f"{i}/{j}/{name}"] = x.contiguous()
        return flat

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> ModelCache:
        """The cache whose `tensors` are ``flat``."""
        if "seen" not in flat:
            raise ValueError(f"these are not the tensors of a ModelCache: no 'seen' among {sorted(flat)[:5]}")
        layers: dict[int, dict[int, State]] = {}
        memories: dict[tuple[int, int, str], dict[str, Tensor]] = {}
        for key, x in flat.items():
            if key == "seen":
                continue
            i, j, name = key.split("/", 2)
            state = layers.setdefault(int(i), {}).setdefault(int(j), {})
            name, _, inner = name.partition("//")
            if inner:
                memories.setdefault((int(i), int(j), name), {})[inner] = x
            else:
                state[name] = x
        for (i, j, name), tensors in memories.items():
            layers[i][j][name] = MemoryState.from_tensors(tensors)
        ordered = tuple(tuple(layers[i][j] for j in sorted(layers[i])) for i in sorted(layers))
        return cls(ordered, tuple(int(n) for n in flat["seen"]))

    def _each(self, fn: Callable[[Tensor | MemoryState], Tensor | MemoryState]) -> ModelCache:
        layers = tuple(tuple({n: fn(x) for n, x in state.items()} for state in layer) for layer in self.layers)
        return self._replace(layers=layers)


def _form(state: State) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    for name, x in state.items():
        if isinstance(x, MemoryState):
            sizes |= {f"{name}.{n}": tuple(w.shape[1:]) for n, w in x.memory.items()}
        else:
            sizes[name] = tuple(x.shape[2:])  # without tokens, of which a window that has no end keeps all
    return sizes

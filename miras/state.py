"""The state of a memory: a value that is passed in and returned, never hidden in a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class MemoryState(NamedTuple):
    """Everything a memory remembers. Splitting a sequence anywhere and passing the state on gives the same numbers.

    Attributes:
        memory: the dual accumulator A of every fast weight, ``[B, H, *weight]``, float32 (float64 for float64 inputs).
        slots: accumulators of the algorithm's filter, ``[B, H, K, *weight]``.
        anchor: A at the last chunk boundary; gradients are taken at its link.
        phase: for every row, how many inner steps of the current chunk have been seen.
        extra: what else has to be carried (replayed pairs, second moments, thresholds, convolution tails).
    """

    memory: Weights
    slots: Weights
    anchor: Weights
    phase: tuple[int, ...]
    extra: Weights

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.phase)

    def map(self, fn: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with ``fn`` applied to every tensor."""

        def each(weights: Weights) -> Weights:
            return {n: fn(x) for n, x in weights.items()}

        return MemoryState(each(self.memory), each(self.slots), each(self.anchor), self.phase, each(self.extra))

    def detach(self) -> MemoryState:
        """The same numbers, cut from the graph (truncated backpropagation through time)."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> MemoryState:
        """The state on another device."""
        return self.map(lambda x: x.to(device))

    def fork(self) -> MemoryState:
        """A copy that shares no storage."""
        return self.map(Tensor.clone)

    def select(self, rows: Sequence[int] | Tensor) -> MemoryState:
        """Rows of the batch, in that order and with repetitions: beam search, or dropping finished sequences."""
        rows = self._numbers(rows)
        phase = tuple(self.phase[row] for row in rows)
        return self._index(torch.tensor(list(rows), dtype=torch.long))._replace(phase=phase)

    def reset(self, rows: Sequence[int] | Tensor, fresh: MemoryState) -> MemoryState:
        """The state with some rows replaced by those of ``fresh``, a state of the same memory and batch."""
        self.check_like(fresh)
        take = torch.zeros(self.batch, dtype=torch.bool)
        take[self._numbers(rows)] = True

        def merge(old: Weights, new: Weights) -> Weights:
            return {n: torch.where(_as(take, x), new[n], x) for n, x in old.items()}

        phase = tuple(fresh.phase[r] if take[r] else p for r, p in enumerate(self.phase))
        return MemoryState(
            merge(self.memory, fresh.memory),
            merge(self.slots, fresh.slots),
            merge(self.anchor, fresh.anchor),
            phase,
            merge(self.extra, fresh.extra),
        )

    def tensors(self) -> Weights:
        """Flat tensors for safetensors, none of which shares its memory with another; `from_tensors` reads them back."""
        whole = torch.contiguous_format
        parts = {"memory": self.memory, "slots": self.slots, "anchor": self.anchor, "extra": self.extra}
        flat = {f"{p}/{n}": x.clone(memory_format=whole) for p, weights in parts.items() for n, x in weights.items()}
        return flat | {"phase": torch.tensor(self.phase)}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> MemoryState:
        """The state whose `tensors` are ``flat``."""
        if "phase" not in flat:
            raise ValueError(f"these are not the tensors of a MemoryState: no 'phase' among {sorted(flat)}")
        parts: dict[str, Weights] = {"memory": {}, "slots": {}, "anchor": {}, "extra": {}}
        for key, x in flat.items():
            if key != "phase":
                part, _, name = key.partition("/")
                if part not in parts:
                    raise ValueError(
                        f"these are not the tensors of a MemoryState: {key!r} is of none of {sorted(parts)}"
                    )
                parts[part][name] = x
        phase = tuple(int(p) for p in flat["phase"])
        return cls(parts["memory"], parts["slots"], parts["anchor"], phase, parts["extra"])

    @staticmethod
    def together(parts: Mapping[str, MemoryState], phase: tuple[int, ...]) -> MemoryState:
        """One state of several memories: the names of each go under its own, and ``phase`` counts for all of them."""

        def join(field: str) -> Weights:
            return {f"{part}.{n}": x for part, s in parts.items() for n, x in getattr(s, field).items()}

        return MemoryState(join("memory"), join("slots"), join("anchor"), phase, join("extra"))

    def part(self, name: str, chunk_size: int, period: int = 0) -> MemoryState:
        """The state of one memory out of `together`, whose phase counts modulo its chunk size (after ``period``, if any)."""

        def own(weights: Weights) -> Weights:
            return {n.removeprefix(f"{name}."): x for n, x in weights.items() if n.startswith(f"{name}.")}

        phase = tuple((p % period if period else p) % chunk_size for p in self.phase)
        return MemoryState(own(self.memory), own(self.slots), own(self.anchor), phase, own(self.extra))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for part in self if isinstance(part, dict) for x in part.values())

    def check_like(self, other: MemoryState) -> None:
        """Raises a ValueError that names the first difference in structure from ``other``."""
        if self.batch != other.batch:
            raise ValueError(f"the state has {self.batch} rows where {other.batch} are needed")
        for part in ("memory", "slots", "anchor", "extra"):
            mine, wanted = getattr(self, part), getattr(other, part)
            if mine.keys() != wanted.keys():
                raise ValueError(
                    f"the state is of another spec: its {part} holds {sorted(mine)} where {sorted(wanted)} are needed"
                )
            for name, x in mine.items():
                if x.shape != wanted[name].shape:
                    raise ValueError(
                        f"the state is of another spec: {part}[{name!r}] has shape {tuple(x.shape)}, not {tuple(wanted[name].shape)}"
                    )
                if x.dtype != wanted[name].dtype:
                    raise ValueError(
                        f"the state's {part}[{name!r}] is {x.dtype}; this memory keeps {wanted[name].dtype}"
                    )

    def _numbers(self, rows: Sequence[int] | Tensor) -> list[int]:
        """Numbers of rows that are there."""
        numbers = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        for row in numbers:
            if isinstance(row, bool) or not 0 <= row < self.batch:
                raise ValueError(
                    f"row {row} is not in a state of {self.batch} rows; of a mask pass mask.nonzero()[:, 0]"
                )
        return numbers

    def _index(self, rows: Tensor) -> MemoryState:
        return self.map(lambda x: x.index_select(0, rows.to(x.device)))

    @staticmethod
    def cat(states: Sequence[MemoryState]) -> MemoryState:
        """States of the same memory, one after another in the batch."""
        if not states:
            raise ValueError("there is no state to go on from: pass at least one")
        for other in states[1:]:
            states[0].select([]).check_like(other.select([]))

        def join(part: str) -> Weights:
            return {n: torch.cat([getattr(s, part)[n] for s in states]) for n in getattr(states[0], part)}

        phase = tuple(p for s in states for p in s.phase)
        return MemoryState(join("memory"), join("slots"), join("anchor"), phase, join("extra"))


def _as(rows: Tensor, x: Tensor) -> Tensor:
    return rows.to(x.device).view(-1, *[1] * (x.dim() - 1))

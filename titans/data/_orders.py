"""In which order tokens become rows: three sources over the same shards.

Shapes: B rows, T inputs of a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from titans.data._base import Batch
from titans.data._shards import Shards


class _Ordered:
    """What the orders have in common.

    Args:
        shards: the tokens.
        batch: rows of a batch.
        length: inputs of a row.
        seed: of the order.
    """

    def __init__(self, shards: Shards, batch: int, length: int, seed: int = 0):
        if len(shards) <= length:
            raise ValueError(f"a row needs {length + 1} tokens; this part of the data has {len(shards)}")
        self.shards, self.rows, self.length, self.seed = shards, batch, length, seed
        self.vocabulary, self.bytes_per_token = shards.vocabulary, shards.bytes_per_token
        self.epoch = (len(shards) - 1) // length  # rows before any token is seen again

    def _batch(self, starts: list[int]) -> Batch:
        rows = np.stack([self.shards.read(s, s + self.length + 1) for s in starts])
        return Batch(tokens=torch.from_numpy(rows), ids=torch.tensor(starts))


class Shuffled(_Ordered):
    """Rows in random order, every one once an epoch; each epoch cuts the text at other places."""

    def batch(self, step: int) -> Batch:
        """``ids`` are the offsets of the rows."""
        starts: list[int] = []
        for number in range(step * self.rows, (step + 1) * self.rows):
            epoch, row = divmod(number, self.epoch)
            shift = epoch * 7919 % (len(self.shards) - self.epoch * self.length)  # of what the rows leave over
            starts.append(int(_permutation(self.seed, epoch, self.epoch)[row]) * self.length + shift)
        return self._batch(starts)


class Stream(_Ordered):
    """B places of the text read on and on: each row continues the one of the step before, until the text is over."""

    def __init__(self, shards: Shards, batch: int, length: int, seed: int = 0):
        super().__init__(shards, batch, length, seed)
        self.steps = self.epoch // batch  # until the text is over
        if not self.steps:
            raise ValueError(f"{batch} rows of {length} tokens need {batch * length + 1}; there are {len(shards)}")

    def batch(self, step: int) -> Batch:
        """``ids`` are the offsets of the rows."""
        now = step % self.steps
        part = self._batch([(row * self.steps + now) * self.length for row in range(self.rows)])
        part["continues"] = now > 0
        return part


class Packed(_Ordered):
    """Documents in random order, one after another in rows; nothing is remembered from one to the next."""

    def batch(self, step: int) -> Batch:
        """``ids`` count rows."""
        rows: list[np.ndarray] = []
        cuts: list[np.ndarray] = []
        inside = np.ones((self.rows, self.length), dtype=bool)
        numbers = range(step * self.rows, (step + 1) * self.rows)
        for place, number in enumerate(numbers):
            tokens, starts, ends = self._row(*divmod(number, self.epoch))
            inside[place, -1] = not ends
            rows.append(tokens)
            cuts.append(starts + place * self.length)
        cuts.append(np.array([self.rows * self.length]))
        return Batch(
            tokens=torch.from_numpy(np.stack(rows)),
            cu_seqlens=torch.from_numpy(np.concatenate(cuts)),
            loss_mask=torch.from_numpy(inside),
            ids=torch.tensor(list(numbers)),
        )

    def _row(self, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Tokens ``[T + 1]``, where documents begin among the inputs, 0 first, and whether one ends with the last input."""
        order = _permutation(self.seed, epoch, len(self.shards.starts))
        ends = self._ends(epoch)
        first, last = row * self.length, (row + 1) * self.length + 1
        pieces: list[np.ndarray] = []
        document, at = int(np.searchsorted(ends, first, side="right")), first
        starts = [0]
        while at < last:
            end = int(ends[document])
            begin = int(self.shards.starts[order[document]]) + self._lengths[order[document]] - end
            pieces.append(self.shards.read(int(begin + at), int(begin + min(end, last))))
            at, document = min(end, last), document + 1
            if at - first < self.length:
                starts.append(at - first)
        return np.concatenate(pieces), np.array(starts), bool(np.isin(last - 1, ends))

    @property
    def _lengths(self) -> np.ndarray:
        return np.diff(self.shards.starts, append=len(self.shards))

    def _ends(self, epoch: int) -> np.ndarray:
        """Where the documents of an epoch end, one after another."""
        return np.cumsum(self._lengths[_permutation(self.seed, epoch, len(self.shards.starts))])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)

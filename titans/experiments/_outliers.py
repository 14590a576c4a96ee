"""Regression in context when some targets are far off: what each inner loss makes of it, without any training.

A matrix memory reads pairs (k, Wk), one gradient step each, and is asked for W. Learning rate and threshold are the best
of a grid on other problems with the same share of outliers, so that every loss is shown as good as it can be.

Shapes: N problems, T pairs, G points of the grid, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from miras import AssociativeMemory, MirasSpec
from titans.experiments._cells import Cell, Point
from titans.tasks import OutlierRegression, Pairs

BIASES = ("l2", "l1", "huber", "huber_norm", "yaad")
RATES = (0.03, 0.1, 0.3, 1.0)
THRESHOLDS = (0.1, 0.3, 1.0, 3.0, 10.0)


def errors(bias: str, problems: Sequence[Pairs], grid: Sequence[tuple[float, float]], pieces: int = 1) -> Tensor:
    r"""$\|\hat W-W\|_F/\|W\|_F$ after each of ``pieces`` equal parts of the sequence, ``[pieces, N, G]``.

    Args:
        bias: the inner loss.
        problems: N of one size.
        grid: learning rate and threshold of every memory.
        pieces: times at which the memory is looked at.
    """
    spec = MirasSpec.make(
        architecture="matrix", bias=bias, retention="none", algorithm="gd", chunk_size=1, step_bound=None
    )
    memory, dim = AssociativeMemory(spec), problems[0].map.shape[0]
    k, v = (
        torch.stack(x)[:, :, None].expand(-1, -1, len(grid), -1) for x in zip(*(p[:2] for p in problems), strict=True)
    )
    truth = torch.stack([p.map for p in problems]).transpose(1, 2)[:, :, None]
    basis = torch.eye(dim, dtype=k.dtype)[None, :, None].expand(len(k), -1, len(grid), -1)
    values = {
        name: torch.tensor(column, dtype=k.dtype)
        for name, column in zip(("lr", "delta"), zip(*grid, strict=True), strict=True)
    }
    state, found = None, []
    for keys, targets in zip(k.chunk(pieces, 1), v.chunk(pieces, 1), strict=True):
        gates = {name: values[name].expand(keys.shape[:3]) for name in spec.gates}
        _, state = memory(keys, keys, targets, gates, state)
        wrong = memory.read(state, basis, dim) - truth
        found.append((wrong.square().sum((1, 3)) / truth.square().sum((1, 3))).sqrt())
    return torch.stack(found)


@dataclass(frozen=True, kw_only=True)
class Outliers(Cell):
    """One loss at one share of outliers; the median over test problems.

    Args:
        share: of the pairs.
        dim: D.
        length: T.
        problems: for choosing and for testing, each.
        pieces: 1 measures at the end, more along the way.
    """

    share: float
    dim: int = 32
    length: int = 400
    problems: int = 8
    pieces: int = 1

    def run(self, folder: Path, device: str) -> list[Point]:
        """Chooses on the first problems, tests on the others."""
        found = self.tuned()
        places = [self.x] if self.pieces == 1 else [self.length * (i + 1) // self.pieces for i in range(self.pieces)]
        return [self.point((value, math.nan, math.nan), x) for x, value in zip(places, found, strict=True)]

    def tuned(self) -> list[float]:
        """Errors with the rate and the threshold that were best on other problems."""
        task = OutlierRegression(dim=self.dim, length=self.length, outliers=self.share)
        drawn = [task.draw(self.seed, i) for i in range(2 * self.problems)]
        has_threshold = "delta" in MirasSpec.make(bias=self.series).gates
        grid = list(product(RATES, THRESHOLDS if has_threshold else (1.0,)))
        chosen = int(errors(self.series, drawn[: self.problems], grid)[-1].median(0).values.argmin())
        return (
            errors(self.series, drawn[self.problems :], [grid[chosen]], self.pieces)[..., 0].median(1).values.tolist()
        )

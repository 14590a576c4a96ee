"""Copying what was scattered among noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Example, Task, following, register


@register("selective_copying")
@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Data tokens among blanks at random places, then a mark, then the data in order (arXiv 2312.00752 §3.1).

    Token 0 is blank, 1 the mark.

    Args:
        data: tokens to copy.
        symbols: different data tokens.
    """

    scored: ClassVar[Literal["token", "example"]] = "token"
    data: int = 16
    symbols: int = 14

    @property
    def vocabulary(self) -> int:
        return 2 + self.symbols

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    @property
    def shortest(self) -> int:
        return 2 * self.data

    def draw(self, rng: np.random.Generator) -> Example:
        words = 2 + rng.integers(self.symbols, size=self.data)
        line = np.zeros(self.length + 1, np.int64)
        room = self.length - self.data
        line[np.sort(rng.choice(room, self.data, replace=False))] = words
        line[room], line[room + 1 :] = 1, words
        return following(line, np.arange(room + 1, self.length + 1))

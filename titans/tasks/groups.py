"""State tracking: the word problem of a finite group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Array, Example, Task, register

Group = Literal["parity", "s3", "a5"]
DEGREE: dict[str, int] = {"parity": 2, "s3": 3, "a5": 5}


@lru_cache
def elements(group: Group) -> tuple[tuple[int, ...], ...]:
    """The permutations of a group, the identity first."""
    every = permutations(range(DEGREE[group]))
    return tuple(p for p in every if group != "a5" or _is_even(p))


@lru_cache
def products(group: Group) -> Array:
    """The table whose entry [a, b] is the number of "a, then b"."""
    number = {p: i for i, p in enumerate(elements(group))}
    return np.array([[number[tuple(b[i] for i in a)] for b in number] for a in number])


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for j in range(len(p)) for i in range(j)) % 2 == 0


@register("state_tracking")
@dataclass(frozen=True, kw_only=True)
class StateTracking(Task):
    """Group elements come in; after each, their product so far is asked.

    ``parity`` needs a state whose transition has a negative eigenvalue (arXiv 2411.12537), ``s3`` reflections that do not
    commute, ``a5`` is not solvable and so out of reach of constant-depth parallel circuits (arXiv 2404.08819).

    Args:
        group: ``parity`` (the permutations of two things), ``s3`` or ``a5``.
    """

    scored: ClassVar[Literal["token", "example"]] = "token"
    length: int = 40
    group: Group = "s3"

    def __post_init__(self) -> None:
        if self.group not in DEGREE:
            raise ValueError(f"group must be one of {', '.join(DEGREE)}, got {self.group!r}")
        super().__post_init__()

    @property
    def vocabulary(self) -> int:
        return len(elements(self.group))

    @property
    def chance(self) -> float:
        return 1 / self.vocabulary

    @property
    def shortest(self) -> int:
        return 1

    def draw(self, rng: np.random.Generator) -> Example:
        table, word = products(self.group), rng.integers(self.vocabulary, size=self.length)
        labels, state = np.empty(self.length, np.int64), 0
        for i, letter in enumerate(word):
            state = labels[i] = table[state, letter]
        return Example(word, labels)

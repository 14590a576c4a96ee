"""Recall of pairs: many queries, and keys that come back corrupted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Example, Task, following, register


@register("mqar")
@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall: pairs first, then each key once more, to be followed by its value.

    Token 0 is blank, keys are drawn from the lower half of the others and values from the upper half. Gaps between the
    pairs and a query follow a power law; what fills them is random but never one of the keys.
    Source: arXiv 2312.04927 §3 and appendix (MQAR); there the value does not follow its query.

    Args:
        pairs: number of keys.
        tokens: size of the vocabulary.
        power: exponent a of the density a x^(a-1) of gaps.
    """

    scored: ClassVar[Literal["token", "example"]] = "token"
    length: int = 64
    pairs: int = 4
    tokens: int = 8192
    power: float = 0.01

    @property
    def vocabulary(self) -> int:
        return self.tokens

    @property
    def chance(self) -> float:
        return 1 / self.pairs  # of the values that were shown

    @property
    def shortest(self) -> int:
        return 4 * self.pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1 or self.pairs > self.tokens // 2 - 1:
            raise ValueError(f"mqar: pairs must lie between 1 and {self.tokens // 2 - 1}, got {self.pairs}")

    def draw(self, rng: np.random.Generator) -> Example:
        half, begin = self.tokens // 2, 2 * self.pairs
        keys = 1 + rng.choice(half - 1, self.pairs, replace=False)
        values = half + rng.choice(self.tokens - half, self.pairs, replace=False)
        line = rng.integers(1, self.tokens, self.length + 1)
        line[np.isin(line, keys)] = 0
        line[:begin:2], line[1:begin:2] = keys, values
        slots = (self.length - begin) // 2
        density = self.power * np.arange(1, slots + 1) ** (self.power - 1.0)
        at = begin + 2 * rng.choice(slots, self.pairs, replace=False, p=density / density.sum())
        line[at], line[at + 1] = keys, values
        return following(line, at + 1)


@register("corrupted_keys")
@dataclass(frozen=True, kw_only=True)
class CorruptedKeys(Task):
    """Recall by a damaged key: keys are words of several tokens, and a query shows some of them replaced.

    The pairs ``key value`` come first, then blanks, then a query for every pair in random order. No two keys share more
    than ``width - 2 corrupted - 1`` places, so that the nearest key is the right one.

    Args:
        pairs: number of keys.
        width: tokens of a key.
        corrupted: tokens of a query that are replaced.
        symbols: tokens that keys are made of; there are as many values.
    """

    scored: ClassVar[Literal["token", "example"]] = "token"
    length: int = 128
    pairs: int = 8
    width: int = 4
    corrupted: int = 1
    symbols: int = 32

    @property
    def vocabulary(self) -> int:
        return 1 + 2 * self.symbols

    @property
    def chance(self) -> float:
        return 1 / self.pairs

    @property
    def shortest(self) -> int:
        return 2 * self.pairs * (self.width + 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1 or self.pairs > self.symbols // 2:
            raise ValueError(f"corrupted_keys: pairs must lie between 1 and half of symbols, got {self.pairs}")
        if 2 * self.corrupted >= self.width:
            raise ValueError(
                f"corrupted_keys: corrupted must be below half of width {self.width}, got {self.corrupted}"
            )

    def draw(self, rng: np.random.Generator) -> Example:
        keys = np.zeros((0, self.width), np.int64)
        while len(keys) < self.pairs:
            key = 1 + rng.integers(self.symbols, size=self.width)
            if not len(keys) or (keys != key).sum(1).min() > 2 * self.corrupted:
                keys = np.vstack([keys, key])
        values = 1 + self.symbols + rng.choice(self.symbols, self.pairs, replace=False)
        queries = keys.copy()
        for query in queries:
            at = rng.choice(self.width, self.corrupted, replace=False)
            query[at] = 1 + (query[at] - 1 + rng.integers(1, self.symbols, len(at))) % self.symbols
        order = rng.permutation(self.pairs)
        shown, asked = (np.column_stack([k, v]).ravel() for k, v in ((keys, values), (queries[order], values[order])))
        line = np.zeros(self.length + 1, np.int64)
        line[: len(shown)], line[len(line) - len(asked) :] = shown, asked
        answers = np.arange(len(line) - len(asked) + self.width, len(line), self.width + 1)
        return following(line, answers)

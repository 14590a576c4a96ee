"""The six tasks of MAD (arXiv 2403.17844), with its default sizes.

In all of them token 0 is the mark or separator where there is one; keys come from the lower half of the symbols, values
from the upper half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Array, Example, Task, blank, following, register
from titans.tasks.copying import SelectiveCopying


@dataclass(frozen=True, kw_only=True)
class _Mad(Task):
    scored: ClassVar[Literal["token", "example"]] = "token"
    length: int = 128
    symbols: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols < 4 or self.symbols % 2:
            raise ValueError(f"{self.name}: symbols must be even and at least 4, got {self.symbols}")

    @property
    def vocabulary(self) -> int:
        return self.symbols

    @property
    def chance(self) -> float:
        return 2 / self.symbols

    @property
    def shortest(self) -> int:
        return 8


def _seen_before(keys: Array) -> np.ndarray:
    """Which of the keys have occurred earlier."""
    return np.arange(len(keys)) > np.array([np.flatnonzero(keys == k)[0] for k in keys])


@register("mad_recall")
@dataclass(frozen=True, kw_only=True)
class Recall(_Mad):
    """In-context recall: ``key value key value ...``, where every example has its own map; keys seen before are asked.

    Args:
        symbols: keys and values together.
    """

    def draw(self, rng: np.random.Generator) -> Example:
        half, pairs = self.symbols // 2, (self.length + 1) // 2
        keys, meaning = rng.integers(half, size=pairs), half + rng.integers(half, size=half)
        line = np.zeros(self.length + 1, np.int64)
        line[0 : 2 * pairs : 2], line[1 : 2 * pairs : 2] = keys, meaning[keys]
        return following(line, 1 + 2 * np.flatnonzero(_seen_before(keys)))


@register("mad_noisy_recall")
@dataclass(frozen=True, kw_only=True)
class NoisyRecall(_Mad):
    """Recall among noise: between the pairs stand tokens of another alphabet of the same size.

    Args:
        symbols: keys and values together.
        noise: share of the tokens that are noise.
    """

    noise: float = 0.2

    @property
    def vocabulary(self) -> int:
        return 2 * self.symbols

    def draw(self, rng: np.random.Generator) -> Example:
        half, count = self.symbols // 2, self.length + 1
        pairs = int(count * (1 - self.noise)) // 2
        keys, meaning = rng.integers(half, size=pairs), half + rng.integers(half, size=half)
        is_pair = np.zeros(count - pairs, bool)  # a pair or a token of noise
        is_pair[rng.choice(len(is_pair), pairs, replace=False)] = True
        begins = np.cumsum(np.r_[0, 1 + is_pair[:-1]])[is_pair]
        line = self.symbols + rng.integers(self.symbols, size=count)
        line[begins], line[begins + 1] = keys, meaning[keys]
        return following(line, begins[_seen_before(keys)] + 1)


@register("mad_fuzzy_recall")
@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(_Mad):
    """Recall of words: keys and values are several tokens long, of lengths that vary; a separator ends each.

    Args:
        symbols: tokens that words are made of, after the separator 0.
        words: different keys.
        longest: tokens of a word at most.
    """

    words: int = 8
    longest: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        there = sum((self.symbols // 2) ** n for n in range(1, self.longest + 1))
        if self.words > there:
            raise ValueError(
                f"{self.name}: {self.symbols} symbols make {there} words of up to {self.longest}, not {self.words}"
            )

    @property
    def vocabulary(self) -> int:
        return 1 + self.symbols

    @property
    def shortest(self) -> int:
        return 4 * (self.longest + 1)

    def draw(self, rng: np.random.Generator) -> Example:
        half = self.symbols // 2
        keys: list[tuple[int, ...]] = []
        while len(keys) < self.words:
            word = _word(rng, half, self.longest)
            if word not in keys:
                keys.append(word)
        meaning = {key: tuple(half + x for x in _word(rng, half, self.longest)) for key in keys}
        line: list[int] = []
        answers: list[int] = []
        shown: set[tuple[int, ...]] = set()
        while len(line) <= self.length:
            key = keys[rng.integers(self.words)]
            value = (*meaning[key], 0)
            line += (*key, 0)
            answers += range(len(line), len(line) + len(value)) if key in shown else ()
            line += value
            shown.add(key)
        kept = np.array([a for a in answers if a <= self.length], np.int64)
        return following(np.array(line[: self.length + 1]), kept)


def _word(rng: np.random.Generator, symbols: int, longest: int) -> tuple[int, ...]:
    """A word of symbols from 1."""
    return tuple((1 + rng.integers(symbols, size=rng.integers(1, longest + 1))).tolist())


@register("mad_selective_copying")
@dataclass(frozen=True, kw_only=True)
class MadCopying(SelectiveCopying):
    """Selective copying at MAD's size, among random noise of its own alphabet instead of blanks."""

    @property
    def vocabulary(self) -> int:
        return 2 + 2 * self.symbols

    def draw(self, rng: np.random.Generator) -> Example:
        inputs, labels = super().draw(rng)
        noise = 2 + self.symbols + rng.integers(self.symbols, size=self.length)
        return Example(np.where(inputs == 0, noise, inputs), labels)


@register("mad_compression")
@dataclass(frozen=True, kw_only=True)
class Compression(_Mad):
    """Random tokens, then a mark, then all of them again, asked by place in random order.

    MAD decodes from one vector; here nothing forces an attention layer through one.

    Args:
        symbols: different tokens.
    """

    length: int = 33

    @property
    def places(self) -> int:
        """Tokens to compress."""
        return (self.length - 1) // 2

    @property
    def vocabulary(self) -> int:
        return 1 + self.symbols + self.places

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    @property
    def shortest(self) -> int:
        return 3

    def draw(self, rng: np.random.Generator) -> Example:
        content, order = 1 + rng.integers(self.symbols, size=self.places), rng.permutation(self.places)
        inputs, labels = np.zeros(self.length, np.int64), blank(self.length)
        inputs[: self.places], inputs[self.length - self.places :] = content, 1 + self.symbols + order
        labels[self.length - self.places :] = content[order]
        return Example(inputs, labels)


@register("mad_memorization")
@dataclass(frozen=True, kw_only=True)
class Memorization(_Mad):
    """Facts that are never shown: every key, followed by a mark, is asked for the value it has in all examples.

    Args:
        symbols: keys and values together.
        map: number of the map from keys to values.
    """

    length: int = 32
    symbols: int = 256
    map: int = 0

    @property
    def vocabulary(self) -> int:
        return 1 + self.symbols

    def draw(self, rng: np.random.Generator) -> Example:
        half = self.symbols // 2
        meaning = 1 + half + np.random.default_rng([self.map, half]).permutation(half)
        keys = rng.integers(half, size=(self.length + 1) // 2)
        inputs, labels = np.zeros(self.length, np.int64), blank(self.length)
        inputs[::2] = 1 + keys
        labels[1::2] = meaning[keys][: self.length // 2]
        return Example(inputs, labels)

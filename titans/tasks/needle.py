"""One fact in a haystack: the passkey test and RULER's three single needles, in bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Example, Task, following, register
from titans.tasks.haystack import hide

Value = Literal["number", "uuid"]

FIRST = (
    "able",
    "bold",
    "calm",
    "dark",
    "fair",
    "glad",
    "high",
    "just",
    "kind",
    "late",
    "mild",
    "neat",
    "open",
    "pale",
    "rare",
    "tall",
)
SECOND = (
    "acorn",
    "brook",
    "cloud",
    "ember",
    "field",
    "grove",
    "hazel",
    "inlet",
    "jetty",
    "knoll",
    "larch",
    "meadow",
    "oak",
    "quay",
)


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """A sentence that gives a key's value, hidden in a haystack whose end asks for it.

    The answer is right if all of its bytes are; under the forced right beginning this is the same event as greedy
    generation giving the whole answer.

    Args:
        value: ``number`` of so many ``digits``, or ``uuid``.
        digits: of a number.
        text: a file to hide the sentence in; None for repeated sentences.
        depth: where in it, in [0, 1]; None for anywhere.
        repeats: how often the sentence is told again on the way, its value being asked each time. For training: answers
            are then asked for near and far, and several times in an example.
    """

    is_text: ClassVar[bool] = True
    length: int = 512
    value: Value = "number"
    digits: int = 7
    text: str | None = None
    depth: float | None = None
    repeats: int = 0

    def __post_init__(self) -> None:
        if self.value not in ("number", "uuid") or self.digits < 1:
            raise ValueError(
                f"value must be 'number' with digits of at least 1, or 'uuid'; got {self.value!r}, {self.digits}"
            )
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must lie in [0, 1], got {self.depth}")
        super().__post_init__()

    @property
    def vocabulary(self) -> int:
        return 256

    @property
    def chance(self) -> float:
        return 10.0**-self.digits if self.value == "number" else 16.0**-32

    @property
    def shortest(self) -> int:
        size = self.digits if self.value == "number" else 36
        return 96 + 2 * size + self.repeats * (44 + size)

    def draw(self, rng: np.random.Generator) -> Example:
        key, value = self.key(rng), self.answer(rng)
        told, question = f"The special {self.value} of {key} is ", f"\nThe special {self.value} of {key} is "
        facts = [f"{told}{value}. ".encode()] * (1 + self.repeats)
        size = self.length + 1 - len(question) - len(value)
        line = hide(facts, size, self.text, rng, self.depth) + question.encode() + value.encode()
        begins = [m.end() for m in re.finditer(re.escape(told.encode()), line)][1:]
        answers = np.concatenate([np.arange(b, b + len(value)) for b in begins])
        return following(np.frombuffer(line, np.uint8).astype(np.int64), answers)

    def key(self, rng: np.random.Generator) -> str:
        """What the value belongs to."""
        return f"{rng.choice(FIRST)}-{rng.choice(SECOND)}"

    def answer(self, rng: np.random.Generator) -> str:
        """A value."""
        if self.value == "number":
            return "".join(map(str, rng.integers(10, size=self.digits)))
        return "-".join(rng.bytes(n).hex() for n in (4, 2, 2, 2, 6))


@register("passkey")
@dataclass(frozen=True, kw_only=True)
class Passkey(Needle):
    """A short number that always has the same key, among sentences that repeat (arXiv 2305.16300 §4.3)."""

    digits: int = 5

    def key(self, rng: np.random.Generator) -> str:
        return "the door"


@register("s_niah_1")
@dataclass(frozen=True, kw_only=True)
class SNiah1(Needle):
    """A number among sentences that repeat (RULER, arXiv 2404.06654, ``niah_single_1``)."""


@dataclass(frozen=True, kw_only=True)
class _InText(Needle):
    def __post_init__(self) -> None:
        if self.text is None:
            raise ValueError(f"{self.name} hides its needle in real text: pass text='FILE' (plain or .xz)")
        super().__post_init__()


@register("s_niah_2")
@dataclass(frozen=True, kw_only=True)
class SNiah2(_InText):
    """A number in real text (RULER, ``niah_single_2``)."""


@register("s_niah_3")
@dataclass(frozen=True, kw_only=True)
class SNiah3(_InText):
    """A UUID in real text (RULER, ``niah_single_3``)."""

    value: Value = "uuid"

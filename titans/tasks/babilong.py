"""Facts of a story scattered through a long text, in the manner of BABILong (arXiv 2406.10149)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from titans.tasks._base import Example, Task, following, register
from titans.tasks.haystack import hide
from titans.tasks.stories import KINDS, LEAST, story


@register("babilong")
@dataclass(frozen=True, kw_only=True)
class BabiLong(Task):
    """A story of few sentences hidden, in order, in a text, then a question with a one-word answer; in bytes.

    The stories are not those of bAbI: accuracies are not comparable with published ones, lengths and haystacks are.

    Args:
        kind: ``qa1`` to ``qa5``: one, two or three supporting facts, relations of two and of three arguments.
        facts: sentences of the story; 0 for what is usual for the kind.
        text: a file to hide them in; None for repeated sentences.
    """

    is_text: ClassVar[bool] = True
    length: int = 1024
    kind: Literal["qa1", "qa2", "qa3", "qa4", "qa5"] = "qa1"
    facts: int = 0
    text: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.sentences < LEAST[self.kind]:
            raise ValueError(f"{self.kind} takes at least {LEAST[self.kind]} facts, got {self.facts}")
        super().__post_init__()

    @property
    def sentences(self) -> int:
        """Of the story."""
        return self.facts or KINDS[self.kind][1]

    @property
    def vocabulary(self) -> int:
        return 256

    @property
    def chance(self) -> float:
        return 1 / len(KINDS[self.kind][2])

    @property
    def shortest(self) -> int:
        return 40 * self.sentences + 64

    def draw(self, rng: np.random.Generator) -> Example:
        told = story(self.kind, self.sentences, rng)
        question, answer = f"\n{told.question} ".encode(), f"{told.answer}.".encode()
        facts = [f"{fact} ".encode() for fact in told.facts]
        line = hide(facts, self.length + 1 - len(question) - len(answer), self.text, rng) + question + answer
        tokens = np.frombuffer(line, np.uint8).astype(np.int64)
        return following(tokens, np.arange(len(tokens) - len(answer), len(tokens)))

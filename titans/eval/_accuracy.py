"""Accuracy on a task by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titans.eval._interval import Interval, wilson
from titans.eval._stream import answers
from titans.loss import IGNORED
from titans.model import TitansLM
from titans.tasks import Task


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right at one length.

    Attributes:
        length: tokens of an example.
        correct: right answers.
        total: questions; whole examples where a task is scored so.
        examples: that the questions are from.
        chance: accuracy of guessing.
    """

    length: int
    correct: int
    total: int
    examples: int
    chance: float

    @property
    def interval(self) -> Interval:
        """The share of right answers with Wilson's 95% interval, as wide as if every example asked one question.

        Answers to several questions of one example are not independent; this interval supposes the worst.
        """
        return wilson(self.correct / self.total * self.examples, self.examples)


def growing(length: int, factor: int = 64) -> list[int]:
    """Lengths from that of training to ``factor`` times it, doubling.

    Example:
        >>> growing(100, 8)
        [100, 200, 400, 800]
    """
    return [length << i for i in range(factor.bit_length()) if 1 << i <= factor]


def accuracy(
    model: TitansLM,
    task: Task,
    lengths: Sequence[int],
    *,
    examples: int = 200,
    tokens: int = 1 << 16,
    chunk: int = 2048,
    seed: int = 0,
) -> list[Accuracy]:
    """Accuracy on the test split, the text read in pieces with the state carried.

    Args:
        model: the model, in evaluation mode.
        task: what is asked.
        lengths: of the examples.
        examples: of each length.
        tokens: read side by side; as many examples as fit (at least one) make a batch.
        chunk: tokens of a row that are read at a time.
        seed: of the examples.

    Example:
        >>> from titans import TitansLM, TitansConfig
        >>> from titans.tasks import task
        >>> config = TitansConfig(vocabulary=6, dim=16, layers=("memory",), memory_heads=2)
        >>> [row] = accuracy(TitansLM(config), task("state_tracking"), [10], examples=50)
        >>> row.length, row.total
        (10, 500)
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if task.vocabulary > model.config.vocabulary:
        raise ValueError(
            f"task {task.name!r} has {task.vocabulary} tokens, the model {model.config.vocabulary}: "
            f"build it with vocabulary={task.vocabulary}"
        )
    return [_at(model, task.at(length), examples, tokens, chunk, seed) for length in lengths]


def _at(model: TitansLM, task: Task, examples: int, tokens: int, chunk: int, seed: int) -> Accuracy:
    correct = total = 0
    rows = max(1, tokens // task.length)
    for begin in range(0, examples, rows):
        batch = task.batch(range(begin, min(begin + rows, examples)), seed, "test")
        labels = batch.get("labels")
        assert labels is not None
        right, asked = answers(model, batch["tokens"][:, :-1], labels, chunk), labels != IGNORED
        if task.scored == "example":
            correct, total = correct + int((right | ~asked).all(1).sum()), total + len(labels)
        else:
            correct, total = correct + int(right.sum()), total + int(asked.sum())
    return Accuracy(task.length, correct, total, examples, task.chance)

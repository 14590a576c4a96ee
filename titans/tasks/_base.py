"""What a task is: examples made from (seed, split, index) alone, and how they become batches.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch

from miras.registry import hint
from titans.data import Batch, Data
from titans.loss import IGNORED

Array = np.ndarray[Any, np.dtype[np.int64]]
C = TypeVar("C", bound="type[Task]")
Split = Literal["train", "valid", "test"]

SPLITS: dict[str, int] = {"train": 0, "valid": 1, "test": 2}
"""Splits and the number each puts into the seed, so that no example is in two of them but by chance."""


class Example(NamedTuple):
    """One sequence.

    Attributes:
        inputs: ``[T]``, what the model reads.
        labels: ``[T]``, what it is to say after reading each token; -100 where it is not asked.
    """

    inputs: Array
    labels: Array


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A family of examples of one length.

    Args:
        length: T, tokens of an example, questions and answers included.

    Example:
        >>> from titans.tasks import task
        >>> mqar = task("mqar", length=64, pairs=4)
        >>> inputs, labels = mqar.example(seed=0, index=7)
        >>> inputs.shape, int((labels >= 0).sum())
        ((64,), 4)
        >>> mqar.at(128).batch(range(3))["labels"].shape
        torch.Size([3, 128])
    """

    name: ClassVar[str] = ""
    scored: ClassVar[Literal["token", "example"]] = "example"
    """Whether every asked token counts for itself, or an example is right only as a whole."""
    is_text: ClassVar[bool] = False
    """Whether tokens are bytes of text."""
    length: int = 256

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of different tokens."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of drawing every answer evenly from those that are possible."""

    @property
    @abstractmethod
    def shortest(self) -> int:
        """Tokens that an example needs at least."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Example:
        """An example from a source of randomness."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 0:
                raise ValueError(f"{self.name}: {field.name} must be at least 0, got {value}")
        if self.length < self.shortest:
            raise ValueError(
                f"{self.name} needs a length of at least {self.shortest} with these fields, got {self.length}"
            )

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Example ``index`` of a split: the same on every machine and in any order."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return self.draw(np.random.default_rng([seed, SPLITS[split], index]))

    def at(self, length: int) -> Task:
        """The same task at another length."""
        return dataclasses.replace(self, length=length)

    def batch(self, indices: Sequence[int], seed: int = 0, split: Split = "train") -> Batch:
        """Examples as tokens ``[B, T + 1]`` (the inputs and one more, which is not read) and labels ``[B, T]``."""
        drawn = [self.example(seed, index, split) for index in indices]
        inputs = torch.from_numpy(np.stack([e.inputs for e in drawn]))
        labels = torch.from_numpy(np.stack([e.labels for e in drawn]))
        tokens = torch.cat([inputs, labels[:, -1:].clamp_min(0)], 1)
        return Batch(tokens=tokens, labels=labels, ids=torch.tensor(indices))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping that `task` turns back into an equal task."""
        return {"name": self.name, **dataclasses.asdict(self)}


TASKS: dict[str, type[Task]] = {}
"""Every task by name."""


def register(name: str) -> Callable[[C], C]:
    """Class decorator that adds a task to `TASKS`."""

    def add(cls: C) -> C:
        cls.name = name
        TASKS[name] = cls
        return cls

    return add


def task(what: str | Mapping[str, Any] | Task, **fields: Any) -> Task:
    """A task from its name and fields, from a mapping with a ``name``, or from itself.

    Raises:
        ValueError: for a name or a field that does not exist, with what was probably meant.

    Example:
        >>> task({"name": "state_tracking", "group": "a5"}, length=32).vocabulary
        60
    """
    if isinstance(what, Task):
        return dataclasses.replace(what, **fields)
    given = {"name": what} if isinstance(what, str) else dict(what)
    name = given.pop("name", None)
    if name not in TASKS:
        raise ValueError(f"no task named {name!r}{hint(str(name), TASKS)} (have: {', '.join(sorted(TASKS))})")
    fields = given | fields
    known = [f.name for f in dataclasses.fields(TASKS[name])]
    for field in fields:
        if field not in known:
            raise ValueError(f"task {name!r} has no field {field!r}{hint(field, known)} (have: {', '.join(known)})")
    return TASKS[name](**fields)


@dataclass(frozen=True)
class Examples:
    """A task as training data: batch number ``step`` is the same whenever it is asked for.

    Args:
        task: the task.
        size: examples in a batch.
        seed: of all examples.
        split: which of them.

    Example:
        >>> source = Examples(task("selective_copying"), size=4)
        >>> bool((source.batch(10)["tokens"] == source.batch(10)["tokens"]).all())
        True
    """

    task: Task
    size: int
    seed: int = 0
    split: Split = "train"

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self.task.vocabulary

    @property
    def bytes_per_token(self) -> float | None:
        """Of text; None for what is not."""
        return 1.0 if self.task.is_text else None

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.task.batch(range(step * self.size, (step + 1) * self.size), self.seed, self.split)


def named(source: str, **fields: Any) -> Task:
    """The task of a source such as ``task:mqar`` or ``task:{"name": "mqar", "pairs": 8}``, with fields changed."""
    what = source.removeprefix("task:")
    try:
        return task(json.loads(what) if what.lstrip().startswith("{") else what, **fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not JSON: {error}") from error


def open_task(data: Data, split: str = "train") -> Examples:
    """A task as a source of the length and batch that `titans.data.Data` asks for."""
    return Examples(named(data.source, length=data.length), data.batch, data.seed, split)  # type: ignore[arg-type]


def blank(length: int) -> Array:
    """Labels that ask nothing."""
    return np.full(length, IGNORED, np.int64)


def following(tokens: Array, answers: Array) -> Example:
    """An example where every answer is the token that follows.

    Args:
        tokens: ``[T + 1]``.
        answers: positions in it of the tokens that are asked for.
    """
    labels = blank(len(tokens) - 1)
    labels[answers - 1] = tokens[answers]
    return Example(tokens[:-1], labels)

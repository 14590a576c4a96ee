"""What a declaration of an experiment means: panels of cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from titans.eval import growing
from titans.experiments._cells import Bits, Cell, Judge, Right, Trained
from titans.experiments._models import model
from titans.experiments._report import Axes
from titans.experiments._scales import Scale
from titans.tasks import Task, task
from titans.train import Config, Data, Model, Optimizer, Records, Schedule

BITS = "bits per byte"
CHUNKS = (1, 8, 16, 64, 256)
"""Sizes that a model trained at one of them is read with."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user chooses for a whole experiment.

    Args:
        text: the text to train on, as `titans.data.Data.source`; a file is also what facts are hidden in.
        valid: a text to measure on, where ``text`` has none of its own; a file also hides the facts of tests.
        seeds: how many; None for the scale's.
        steps: of the training; None for the scale's.
        models: only these, if any.
    """

    text: str = "stdlib"
    valid: str | None = None
    seeds: int | None = None
    steps: int | None = None
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seeds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None for the scale's, got {value}")

    @property
    def haystack(self) -> str | None:
        """The file that facts are hidden in."""
        return self.text if Path(self.text).is_file() else None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Cells that make one plot: every model with every change, each with every seed.

    Args:
        x: label of the axis the changes are on.
        models: names in `MODELS`; the lines.
        changes: places on the axis and the fields of the memory that differ there.
        task: fields of a task; None for text.
        measure: ``once``, at ``lengths`` that grow, or with other ``chunks``.
        log: which axes are logarithmic.
    """

    x: str
    models: tuple[str, ...]
    changes: tuple[tuple[float | str, Mapping[str, Any]], ...] = (("", {}),)
    task: Mapping[str, Any] | None = None
    measure: Literal["once", "lengths", "chunks"] = "once"
    log: str = ""

    def axes(self) -> Axes:
        """Of the plot."""
        if self.task is None:
            return Axes(x=self.x, y=BITS, log=self.log)
        chance = self._task().chance
        return Axes(x=self.x, y="accuracy", log=self.log, chance=chance if chance > 0.01 else None)

    def cells(self, name: str, scale: Scale, options: Options) -> Iterator[Cell]:
        """The cells that can be: changes whose parts do not combine are left out (`refusals` says why)."""
        for series in self._models(options):
            for x, fields in self.changes:
                try:
                    built = model(series, scale, **fields)
                except ValueError:
                    continue
                for seed in range(options.seeds or scale.seeds):
                    place = series if x == "" else x
                    yield Trained(
                        panel=name,
                        series="" if x == "" and self.measure == "once" else series,
                        x=place,
                        seed=seed,
                        config=self._config(scale, options, built),
                        judge=self._judge(scale, options),
                    )

    def refusals(self, scale: Scale, options: Options) -> Iterator[str]:
        """Changes that cannot be, and why."""
        for series in self._models(options):
            for x, fields in self.changes:
                try:
                    model(series, scale, **fields)
                except ValueError as error:
                    yield f"{series}, {x}: {error}"

    def _models(self, options: Options) -> list[str]:
        return [m for m in self.models if not options.models or m in options.models]

    def _config(self, scale: Scale, options: Options, built: Model) -> Config:
        data = Data(source=self._source(options), valid=options.valid, length=scale.length, batch=scale.batch)
        if self.task is not None:
            data = dataclasses.replace(data, valid=None, length=self._length(scale))
        steps = options.steps or scale.steps
        return Config(
            steps=steps,
            precision=scale.precision,
            model=built,
            data=data,
            optimizer=Optimizer(lr=scale.lr),
            schedule=Schedule(warmup=max(1, steps // 20)),
            records=Records(quiet=True, save_every=max(1, steps // 4), log_every=max(1, steps // 50)),
        )

    def _length(self, scale: Scale) -> int:
        """What the task says, or the scale's, or what the task needs at least, in multiples of 64."""
        if self.task is None:
            return scale.length
        least = -(-self._task().shortest // 64) * 64
        return int(self.task.get("length", max(scale.length, least)))

    def _task(self, haystack: str | None = "unread") -> Task:
        """What is asked, of any length."""
        assert self.task is not None
        hidden = {"text": haystack} if "text" in self.task else {}
        return task({"length": 1 << 20, **self.task, **hidden})

    def _source(self, options: Options) -> str:
        if self.task is None:
            return options.text
        return "task:" + json.dumps(self._task(options.haystack).to_dict())

    def _judge(self, scale: Scale, options: Options) -> Judge:
        if self.task is None:
            return Bits(segments=scale.examples, sizes=CHUNKS if self.measure == "chunks" else ())
        lengths = tuple(growing(self._length(scale), scale.factor)) if self.measure == "lengths" else ()
        valid = options.valid if "text" in self.task and options.haystack else None
        return Right(examples=scale.examples, lengths=lengths, valid=valid)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What `sweep` runs.

    Args:
        title: over the plots.
        panels: by name.
    """

    title: str
    panels: Mapping[str, Panel]

    def axes(self) -> dict[str, Axes]:
        """Of every panel."""
        return {name: panel.axes() for name, panel in self.panels.items()}

    def cells(self, scale: Scale, options: Options) -> list[Cell]:
        """Of all panels."""
        return [c for name, panel in self.panels.items() for c in panel.cells(name, scale, options)]

    def notes(self, scale: Scale, options: Options) -> list[str]:
        """What to know about the numbers."""
        return [f"left out: {reason}" for panel in self.panels.values() for reason in panel.refusals(scale, options)]

"""The experiments, declared: which models, what changes between them, on which data, and what is measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miras import biases, retentions
from titans.eval import growing
from titans.experiments._cells import Bits, Cell, Judge, Right, Trained
from titans.experiments._models import model
from titans.experiments._outliers import BIASES, Outliers
from titans.experiments._report import Axes
from titans.experiments._scales import Scale
from titans.tasks import TASKS, Task, task
from titans.train import Config, Data, Optimizer, Records, Schedule

BITS = "bits per byte"
MEMORIES_ALONE = ("gated_deltanet", "lmm", "yaad", "moneta", "memora", "ours")
ALL = ("transformer", "window", *MEMORIES_ALONE, "mac", "mag", "mal")
TITANS = ("window", "lmm", "mac", "mag", "mal")
CHUNKS = (1, 4, 16, 64, 256)
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)


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
        fields = {"text": None} if "text" in self.task else {}
        name = self.task["name"]
        chance = task(name, **{k: v for k, v in self.task.items() if k in ("kind", "group", "pairs")} | fields).chance
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

    def _config(self, scale: Scale, options: Options, built: Any) -> Config:
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


class OutlierExperiment(Experiment):
    """The experiment that trains nothing."""

    def axes(self) -> dict[str, Axes]:
        error = "relative error of the map"
        return {
            "after 400 pairs": Axes(x="share of outliers", y=error, log="y"),
            "over time, 2% outliers": Axes(x="pairs", y=error, log="y"),
        }

    def cells(self, scale: Scale, options: Options) -> list[Cell]:
        end, time = self.axes()
        seeds = range(options.seeds or 3)
        cells: list[Cell] = [
            Outliers(panel=end, series=b, x=s, seed=seed, share=s) for b in BIASES for s in SHARES for seed in seeds
        ]
        return cells + [
            Outliers(panel=time, series=b, x=0, seed=seed, share=0.02, pieces=20) for b in BIASES for seed in seeds
        ]

    def notes(self, scale: Scale, options: Options) -> list[str]:
        return ["learning rate and threshold of every loss: the best of a grid on other problems with as many outliers"]


def _named(axis: str, names: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return tuple((name, {axis: name}) for name in names if name != "from_module")


def _mqar(pairs: int) -> dict[str, Any]:
    return {"name": "mqar", "length": max(64, 8 * pairs), "pairs": pairs, "tokens": 512}


MAD = {name: {"name": name, "length": cls.length} for name, cls in TASKS.items() if name.startswith("mad_")}
QUESTIONS = {f"qa{i}": {"name": "babilong", "kind": f"qa{i}", "text": None} for i in range(1, 6)}
CORRUPTED = {"name": "corrupted_keys", "length": 128}

EXPERIMENTS: dict[str, Experiment] = {
    "variants": Experiment(
        title="Text and recall: every model, the same steps",
        panels={
            "text": Panel(x="model", models=ALL),
            "recall of 16 pairs": Panel(x="model", models=ALL, task=_mqar(16)),
        },
    ),
    "depth": Experiment(
        title="Depth of the memory",
        panels={
            "text": Panel(
                x="matrices of the memory",
                models=("lmm", "yaad"),
                changes=tuple((n, {"architecture": {"name": "mlp", "depth": n}}) for n in (1, 2, 3, 4)),
            )
        },
    ),
    "chunk": Experiment(
        title="Chunk size: trained with it, and only read with it",
        panels={
            "trained at this size": Panel(
                x="chunk size",
                models=("lmm", "yaad"),
                changes=tuple((n, {"chunk_size": n}) for n in CHUNKS),
                log="x",
            ),
            "trained at 64, read at this size": Panel(
                x="chunk size", models=("lmm", "yaad"), changes=((64, {"chunk_size": 64}),), measure="chunks", log="x"
            ),
        },
    ),
    "retention": Experiment(
        title="Retention, all else being Yaad's",
        panels={
            "text": Panel(x="retention", models=("yaad",), changes=_named("retention", retentions)),
            "recall of 16 pairs": Panel(
                x="retention",
                models=("yaad",),
                changes=_named("retention", retentions),
                task=_mqar(16),
            ),
        },
    ),
    "bias": Experiment(
        title="Attentional bias, all else being Yaad's",
        panels={
            "text": Panel(x="bias", models=("yaad",), changes=_named("bias", biases)),
            "corrupted keys": Panel(x="bias", models=("yaad",), changes=_named("bias", biases), task=CORRUPTED),
        },
    ),
    "enwik8": Experiment(title="enwik8", panels={"enwik8": Panel(x="model", models=ALL)}),
    "babilong": Experiment(
        title="Facts in a long text, by length",
        panels={
            kind: Panel(x="bytes", models=TITANS, task=fields, measure="lengths", log="x")
            for kind, fields in QUESTIONS.items()
        },
    ),
    "needles": Experiment(
        title="One fact in a long text, by length",
        panels={
            name: Panel(x="bytes", models=TITANS, task={"name": name, "text": None}, measure="lengths", log="x")
            for name in ("s_niah_1", "s_niah_2", "s_niah_3")
        },
    ),
    "recall": Experiment(
        title="Recall of pairs",
        panels={f"{n} pairs": Panel(x="model", models=ALL, task=_mqar(n)) for n in (4, 16, 64)},
    ),
    "mad": Experiment(
        title="The six tasks of MAD",
        panels={name: Panel(x="model", models=ALL, task=fields) for name, fields in MAD.items()},
    ),
    "length": Experiment(
        title="Beyond the training length",
        panels={
            "passkey": Panel(
                x="bytes", models=TITANS, task={"name": "passkey", "text": None}, measure="lengths", log="x"
            ),
            "products in S3": Panel(
                x="elements",
                models=("gated_deltanet", *TITANS),
                task={"name": "state_tracking", "group": "s3", "length": 40},
                measure="lengths",
                log="x",
            ),
        },
    ),
    "outliers": OutlierExperiment(title="Regression in context with outliers", panels={}),
}
"""Every experiment by name."""

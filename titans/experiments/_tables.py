"""The experiments, declared: which models, what changes between them, on which data, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from miras import biases, retentions
from titans.experiments._cells import Cell
from titans.experiments._forecast import LINEAR, Forecasting
from titans.experiments._outliers import BIASES, Outliers
from titans.experiments._panels import CHUNKS, Experiment, Options, Panel
from titans.experiments._report import Axes
from titans.experiments._scales import Scale
from titans.tasks import TASKS, Forecast

MEMORIES_ALONE = ("gated_deltanet", "lmm", "yaad", "moneta", "memora", "ours")
ALL = ("transformer", "window", *MEMORIES_ALONE, "mac", "mag", "mal")
TITANS = ("window", "lmm", "mac", "mag", "mal")
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)


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


class ForecastExperiment(Experiment):
    """The experiment on a table of numbers instead of tokens, by horizon."""

    def axes(self) -> dict[str, Axes]:
        return {"test part": Axes(x="rows ahead", y="squared error", log="x")}

    def cells(self, scale: Scale, options: Options) -> list[Cell]:
        [panel] = self.axes()
        names = [n for n in (LINEAR, "transformer", *MEMORIES_ALONE) if not options.models or n in options.models]
        scale = replace(scale, steps=options.steps or scale.steps)
        tasks = [Forecast(path=options.text, horizon=horizon) for horizon in (96, 192, 336, 720)]
        seeds = range(options.seeds or scale.seeds)
        return [
            Forecasting(panel=panel, series=n, x=t.horizon, seed=seed, task=t, scale=scale)
            for n in names
            for t in tasks
            for seed in seeds
        ]

    def notes(self, scale: Scale, options: Options) -> list[str]:
        return [
            "numbers are standardised; parts of 8640, 2880 and 2880 rows, 96 rows of past; the best of 8 by the second part"
        ]


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
    "forecast": ForecastExperiment(title="Forecasting", panels={}),
    "outliers": OutlierExperiment(title="Regression in context with outliers", panels={}),
}
"""Every experiment by name."""

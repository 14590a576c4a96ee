"""The unit of an experiment: one trained model, or one measurement without training, and the numbers it gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from titans.data import open_source
from titans.data import shards as text_shards
from titans.eval import Interval, accuracy, by_chunk, likelihood
from titans.model import TitansLM
from titans.tasks import named
from titans.train import Config, train
from titans.train.passes import computed


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured number.

    Attributes:
        panel: the plot it belongs to.
        series: the line.
        x: the place on it, a number or a name.
        seed: of the run.
        value: what was measured.
        low: lower end of its own 95% interval (of the questions asked, not of the seeds); NaN without one.
        high: upper end.
    """

    panel: str
    series: str
    x: float | str
    seed: int
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """What can be run on its own, and not again once its points are on disk.

    Args:
        panel: of its points.
        series: of its points.
        x: of its points, unless it measures several.
        seed: of everything random.
    """

    panel: str
    series: str
    x: float | str
    seed: int

    @abstractmethod
    def run(self, folder: Path, device: str) -> list[Point]:
        """The points; the folder is the cell's own, and what it holds from an interrupted run is used."""

    def clear(self, folder: Path) -> None:  # noqa: B027  most cells leave nothing behind
        """Removes what is not needed once the points are on disk."""

    @property
    def key(self) -> str:
        """A name that differs wherever the cell does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"kind": type(self).__name__, **{f.name: _json(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    def point(self, value: Interval | tuple[float, float, float], x: float | str | None = None) -> Point:
        """A point of this cell."""
        here = self.x if x is None else x
        return Point(
            panel=self.panel, series=self.series, x=here, seed=self.seed, value=value[0], low=value[1], high=value[2]
        )


class Judge(ABC):
    """What a trained model is asked."""

    @abstractmethod
    def measure(self, model: TitansLM, config: Config) -> list[tuple[float | str | None, Interval]]:
        """Places on the x axis (None for the cell's own) and what was found there."""


@dataclass(frozen=True)
class Bits(Judge):
    """Bits per byte of held-out text.

    Args:
        segments: of the text.
        sizes: other chunk sizes to read it with; without any, the one that was trained.
    """

    segments: int = 64
    sizes: tuple[int, ...] = ()

    def measure(self, model: TitansLM, config: Config) -> list[tuple[float | str | None, Interval]]:
        data = text_shards(config.data, "valid")
        text = torch.from_numpy(data.read(0, len(data)))

        def of(model: TitansLM) -> Interval:
            found = likelihood(
                model,
                text,
                length=config.data.length,
                segments=self.segments,
                rows=config.data.batch,
                bytes_per_token=data.bytes_per_token,
            )
            return found.bits_per_byte

        return list(by_chunk(model, self.sizes, of).items()) if self.sizes else [(None, of(model))]


@dataclass(frozen=True)
class Right(Judge):
    """Accuracy on the task a model was trained on.

    Args:
        examples: of each length.
        lengths: of the examples; without any, the one that was trained.
        valid: a text to hide the facts of the examples in; None for that of the training.
    """

    examples: int = 200
    lengths: tuple[int, ...] = ()
    valid: str | None = None

    def measure(self, model: TitansLM, config: Config) -> list[tuple[float | str | None, Interval]]:
        one = named(config.data.source, length=config.data.length, **({"text": self.valid} if self.valid else {}))
        found = accuracy(model, one, self.lengths or [one.length], examples=self.examples, seed=config.seed)
        return [(row.length if self.lengths else None, row.interval) for row in found]


@dataclass(frozen=True, kw_only=True)
class Trained(Cell):
    """A model that is trained, then judged.

    Args:
        config: of the training; its folder, its seeds and its device are set here.
        judge: what is measured afterwards.
        before: trainings of the same model that come first, as of a curriculum.
    """

    config: Config
    judge: Judge
    before: tuple[Config, ...] = ()

    def run(self, folder: Path, device: str) -> list[Point]:
        """Trains, or finishes the training, and measures in the same precision."""
        model = self.fit(folder, device).eval()
        config = self._here(self.config, folder, device)
        with computed(config.precision, config.model.memory, device):
            return [self.point(found, x) for x, found in self.judge.measure(model, config)]

    def fit(self, folder: Path, device: str) -> TitansLM:
        """The trained model; an interrupted training goes on where it was.

        Raises:
            InterruptedError: if a signal ends the training: what has not been trained to the end is not judged.
        """
        stages = [self._here(c, self.stage(folder, i), device) for i, c in enumerate((*self.before, self.config))]
        torch.manual_seed(self.seed)
        model = TitansLM(self.config.model.build(open_source(stages[-1].data).vocabulary)).to(device)
        for config in stages:
            if (end := train(config, model)).stopped:
                raise InterruptedError(
                    f"stopped by {end.stopped.name} after step {end.step} of {config.steps}; it goes on from there"
                )
        return model

    def stage(self, folder: Path, number: int = -1) -> Path:
        """Where a training writes, the last one if not told otherwise."""
        return folder / str(range(len(self.before) + 1)[number])

    def clear(self, folder: Path) -> None:
        """Checkpoints; the curves stay."""
        for stage in folder.iterdir():
            shutil.rmtree(stage / "checkpoints", ignore_errors=True)

    def _here(self, config: Config, folder: Path, device: str) -> Config:
        data, system = replace(config.data, seed=self.seed), replace(config.system, device=device)
        return replace(config, folder=str(folder), seed=self.seed, data=data, system=system)


def _json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {
            "kind": type(value).__name__,
            **{f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)},
        }
    if isinstance(value, Mapping):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, (list, tuple)) else value

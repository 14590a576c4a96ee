"""Forecasting: models of the same size around a linear head, and a linear map of the past as the thing to beat."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans.experiments._cells import Cell, Point
from titans.experiments._models import model
from titans.experiments._scales import Scale
from titans.tasks import Forecast, Forecaster

LINEAR = "linear"
ROUNDS = 8
"""Looks at the validation part during a training; the best of them counts."""


class Linear(nn.Module):
    """The past, minus its last row, through one matrix (arXiv 2205.13504, "NLinear")."""

    def __init__(self, task: Forecast):
        super().__init__()
        self.map = nn.Linear(task.lookback, task.horizon)

    def forward(self, past: Tensor) -> Tensor:
        """``[N, L, C]`` to ``[N, H, C]``."""
        last = past[:, -1:]
        return self.map((past - last).transpose(1, 2)).transpose(1, 2) + last


@dataclass(frozen=True, kw_only=True)
class Forecasting(Cell):
    """Trains on one horizon and tests; the series is the name of a model, or `LINEAR`.

    Args:
        task: what is forecast.
        scale: of the model and its training.
    """

    task: Forecast
    scale: Scale

    def run(self, folder: Path, device: str) -> list[Point]:
        """The squared error of the model that was best on the validation part."""
        torch.manual_seed(self.seed)
        made = self._model().to(device)
        best, kept = math.inf, made
        for _ in range(ROUNDS):
            self._train(made, device)
            if (error := self._error(made, "valid", device)) < best:
                best, kept = error, copy.deepcopy(made)
        return [self.point((self._error(kept, "test", device), math.nan, math.nan))]

    def _model(self) -> nn.Module:
        if self.series == LINEAR:
            return Linear(self.task)
        return Forecaster(model(self.series, self.scale).build(1), self.task)

    def _train(self, made: nn.Module, device: str) -> None:
        """One of the rounds; the learning rate is constant."""
        optimizer = torch.optim.AdamW((p for p in made.parameters() if p.requires_grad), self.scale.lr / 4)
        for past, future in self._batches(device):
            optimizer.zero_grad()
            F.mse_loss(made(past), future).backward()
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()

    def _batches(self, device: str) -> Iterator[tuple[Tensor, Tensor]]:
        past, future = self.task.windows("train")
        for _ in range(max(1, self.scale.steps // ROUNDS)):
            rows = torch.randint(len(past), (self.scale.batch,))
            yield past[rows].to(device), future[rows].to(device)

    @torch.no_grad()
    def _error(self, made: nn.Module, part: str, device: str) -> float:
        past, future = self.task.windows(part)  # type: ignore[arg-type]
        total = 0.0
        for p, f in zip(past.split(256), future.split(256), strict=True):
            total += float(F.mse_loss(made(p.to(device)), f.to(device), reduction="sum"))
        return total / future.numel()

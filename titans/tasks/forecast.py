"""Time-series forecasting: windows of a table, and a model that forecasts through any sequence model's layers.

Shapes: N windows, L rows of past, H rows of future, C channels.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from titans.config import TitansConfig
from titans.model import TitansLM

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A CSV file of numbers, standardised on its first part (protocol of ETT: arXiv 2012.07436 §5, hourly files).

    Args:
        path: of the file; its first line names the columns, its first column (a date) is left out.
        lookback: L.
        horizon: H.
        rows: of the parts, one after the other.

    Raises:
        ValueError: if the file is not there, or too short.
    """

    path: str
    lookback: int = 96
    horizon: int = 96
    rows: tuple[int, int, int] = (8640, 2880, 2880)

    @property
    def channels(self) -> int:
        """C."""
        return _standardised(self.path, self.rows[0]).shape[1]

    def windows(self, part: Part) -> tuple[Tensor, Tensor]:
        """All windows of a part: past ``[N, L, C]`` and future ``[N, H, C]``; the past may reach into the part before."""
        series = _standardised(self.path, self.rows[0])
        index = ("train", "valid", "test").index(part)
        begin, end = sum(self.rows[:index]) - (self.lookback if index else 0), sum(self.rows[: index + 1])
        if end > len(series):
            raise ValueError(f"{self.path} has {len(series)} rows; parts of {self.rows} need {sum(self.rows)}")
        both = torch.from_numpy(series[begin:end]).unfold(0, self.lookback + self.horizon, 1).transpose(1, 2)
        return both[:, : self.lookback], both[:, self.lookback :]


@lru_cache(maxsize=4)
def _standardised(path: str, train: int) -> np.ndarray:
    if not Path(path).is_file():
        raise ValueError(f"path must be a CSV file such as ETTh1.csv; there is no {path!r}")
    with Path(path).open() as file:
        table = np.array([row[1:] for row in list(csv.reader(file))[1:]], np.float32)
    return (table - table[:train].mean(0)) / table[:train].std(0)


class Forecaster(nn.Module):
    r"""Every channel on its own: normalised by its past, a token for each patch, the layers, and a linear map of the last token.

    Source of the two devices: arXiv 2211.14730 §3.1 (patches, channel independence), ICLR 2022 "RevIN" (normalisation).

    Args:
        config: of the layers; its vocabulary is not used.
        task: what is forecast.
        patch: rows of a patch; divides the lookback.

    Example:
        >>> config = TitansConfig(vocabulary=1, dim=16, layers=("memory",), memory_heads=2)
        >>> model = Forecaster(config, Forecast(path="any.csv", lookback=32, horizon=8), patch=8)
        >>> model(torch.randn(5, 32, 7)).shape
        torch.Size([5, 8, 7])
    """

    def __init__(self, config: TitansConfig, task: Forecast, patch: int = 8):
        super().__init__()
        if task.lookback % patch:
            raise ValueError(f"patch must divide the lookback {task.lookback}, got {patch}")
        self.patch = patch
        self.embed, self.head = nn.Linear(patch, config.dim), nn.Linear(config.dim, task.horizon)
        self.layers = TitansLM(config)
        self.layers.embedding.requires_grad_(False)

    def forward(self, past: Tensor) -> Tensor:
        """``[N, L, C]`` to ``[N, H, C]``."""
        mean, std = past.mean(1, keepdim=True), past.std(1, keepdim=True) + 1e-4
        x = ((past - mean) / std).transpose(1, 2).flatten(0, 1).unflatten(1, (-1, self.patch))
        hidden, _ = self.layers.hidden(self.embed(x))
        future = self.head(hidden[:, -1]).unflatten(0, (len(past), -1)).transpose(1, 2)
        return future * std + mean

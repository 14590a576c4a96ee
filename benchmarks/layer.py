"""Time any sequence layer `[B, T, dim] -> [B, T, dim]`; runs unchanged in a peer's environment."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks import meter

Mode = Literal["forward", "train"]


@dataclass(frozen=True)
class Shape:
    """The layer and the sequence to compare at."""

    batch: int = 1
    length: int = 2048
    dim: int = 256
    heads: int = 4
    head_dim: int = 64
    expansion: int = 4
    chunk: int = 64


def measure(build: Callable[[Shape], nn.Module], shape: Shape, mode: Mode, seconds: float) -> dict[str, Any]:
    """Milliseconds per call and MiB; `train` is forward and backward to input and parameters."""
    baseline = meter.resident()
    torch.manual_seed(0)
    layer = build(shape)
    x = torch.randn(shape.batch, shape.length, shape.dim)
    samples = meter.milliseconds(partial(MODES[mode], layer, x), seconds)
    return {
        "samples": samples,
        "baseline": baseline,
        "peak": meter.peak(),
        "finite": bool(forward(layer, x).isfinite().all()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@torch.no_grad()
def forward(layer: nn.Module, x: Tensor) -> Tensor:
    y, _ = layer(x)
    return y


def train(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    y, _ = layer(x.detach().requires_grad_())
    y.backward(torch.ones_like(y))


MODES = {"forward": forward, "train": train}

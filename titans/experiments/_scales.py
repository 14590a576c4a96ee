"""How big an experiment is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of models, trainings and measurements.

    Args:
        dim: width of the stream.
        depth: layers.
        heads: of attention and memory.
        window: tokens that attention sees: windows and segments.
        length: tokens of a training row.
        batch: rows of a step.
        steps: of the training.
        lr: peak learning rate, the same for all models.
        seeds: runs of every cell.
        examples: questions, or segments of text, of a measurement.
        factor: up to how many times the training length is tested.
        precision: of the matrix products.
    """

    dim: int
    depth: int
    heads: int
    window: int
    length: int
    batch: int
    steps: int
    lr: float
    seeds: int
    examples: int
    factor: int
    precision: Literal["float32", "bfloat16"] = "float32"


SCALES: dict[str, Scale] = {
    "tiny": Scale(
        dim=32, depth=2, heads=2, window=32, length=128, batch=8, steps=200, lr=4e-3, seeds=2, examples=32, factor=8
    ),
    "small": Scale(
        dim=128,
        depth=4,
        heads=4,
        window=64,
        length=512,
        batch=32,
        steps=3000,
        lr=2e-3,
        seeds=3,
        examples=200,
        factor=64,
    ),
    "h100": Scale(
        dim=512,
        depth=8,
        heads=8,
        window=128,
        length=2048,
        batch=32,
        steps=8000,
        lr=1e-3,
        seeds=3,
        examples=500,
        factor=64,
        precision="bfloat16",
    ),
}
"""``tiny`` is minutes on a CPU and shows that everything runs, no more; ``small`` an hour or so of one GPU."""

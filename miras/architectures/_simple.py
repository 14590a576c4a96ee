"""Memories of one weight: a vector, a matrix, and a matrix of slots addressed by a softmax.

Shapes: ``x`` is ``[..., T, d_key]``, an answer and its error ``[..., T, d_value]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.architectures._base import (
    Architecture,
    FastWeight,
    Tap,
    View,
    architectures,
    positive,
    same_width,
)


def linear_tap(w: View, name: str, features: Tensor) -> Tap:
    """The tap of a linear architecture: the error at the matrix is the error at the answer."""
    y = w.dense(name, features)
    return Tap(y, {name: features}, {name: y}, lambda error: {name: error})


@architectures.register("vector")
@dataclass(frozen=True)
class Vector(Architecture):
    r"""A vector, $\mathcal M(w;x)=w\odot x$: one number per channel, the state of diagonal recurrences.

    Source: MIRAS (arXiv 2504.13173) Table 1, the vector-valued memories.

    Raises:
        ValueError: where ``d_key != d_value``.
    """

    has_matrices: ClassVar[bool] = False

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        same_width(self, d_key, d_value, "it multiplies channel by channel", "architecture='matrix'")
        return {"w": FastWeight((d_key,), "vector", reads_key=True, writes_value=True)}

    def forward(self, w: View, x: Tensor) -> Tensor:
        return w.vector("w") * x

    def tap(self, w: View, x: Tensor) -> Tap:
        return Tap(self.forward(w, x), {}, {}, lambda error: {"w": error * x})


@architectures.register("matrix")
@dataclass(frozen=True)
class Matrix(Architecture):
    r"""A matrix, $\mathcal M(W;x)=xW$: linear attention, DeltaNet and their relatives (MIRAS, Table 1)."""

    is_linear: ClassVar[bool] = True

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        return {"w": FastWeight((d_key, d_value), reads_key=True, writes_value=True)}

    def forward(self, w: View, x: Tensor) -> Tensor:
        return w.dense("w", x)

    def tap(self, w: View, x: Tensor) -> Tap:
        return linear_tap(w, "w", x)


@architectures.register("slots")
@dataclass(frozen=True)
class Slots(Architecture):
    r"""A dictionary of slots, $\mathcal M(S;x)=\sum_i c_is_i$ with the code $c=\mathrm{softmax}(x/\tau)$.

    There are ``d_key`` slots of width ``d_value``, the rows of one matrix, so a gate per key channel is a gate
    per slot. The ``orthogonal`` retention, which keeps every slot at its length, makes it Lattice.

    Source: Lattice (arXiv 2504.05646); the gated slots of GSA (2409.07146) read with the same code.

    Args:
        temperature: $\tau>0$; towards 0 every key addresses a single slot.
    """

    is_linear: ClassVar[bool] = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "temperature")

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        return {"slots": FastWeight((d_key, d_value), reads_key=True, writes_value=True)}

    def features(self, x: Tensor) -> Tensor:
        return torch.softmax(x / self.temperature, dim=-1)

    def forward(self, w: View, x: Tensor) -> Tensor:
        return w.dense("slots", self.features(x))

    def tap(self, w: View, x: Tensor) -> Tap:
        return linear_tap(w, "slots", self.features(x))

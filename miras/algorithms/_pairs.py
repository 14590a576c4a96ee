"""Algorithms that choose the pairs whose gradients are taken: a window, or several steps a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms, at_least
from miras.algorithms._errors import Implicit
from miras.algorithms._filters import GD
from miras.algorithms._newton import Newton
from miras.engine.filters import Filter
from miras.gates import Gate


@algorithms.register("omega")
@dataclass(frozen=True)
class Omega(Algorithm):
    r"""The last $c$ pairs are learned again at every token, at the current anchor: $g_t=\sum_{i=t-c+1}^t\gamma_i\nabla\ell(W;k_i,v_i)$.

    The gradient then enters the inner algorithm with this token's learning rate. Source: ATLAS (arXiv 2505.23735) Eq. 8-11.

    Args:
        size: the window $c$, >= 1; 1 is the inner algorithm.
        inner: an algorithm that filters or turns the gradient (`gd`, `momentum`, `muon`, ...).
    """

    size: int = 4
    inner: Algorithm = GD()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inner", algorithms.build(self.inner))
        at_least("size", self.size, 1)
        if self.per != "head":
            raise ValueError("omega shares its learning rate among the pairs of a window: it is per head")
        if isinstance(self.inner, (Omega, MultiStep, Newton, Implicit)) or self.inner.settles:
            raise ValueError(
                f"omega replays pairs for a gradient filter; {self.inner.name!r} cannot be its inner algorithm"
            )
        if (self.inner.max_lr, self.inner.per) != (Algorithm.max_lr, Algorithm.per):
            raise ValueError("omega has one learning rate, its own: leave out max_lr and per of the inner algorithm")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.inner.slots

    @property
    def direction_is_identity(self) -> bool:  # type: ignore[override]
        return self.inner.direction_is_identity

    @property
    def needs_matrices(self) -> bool:  # type: ignore[override]
        return self.inner.needs_matrices

    @property
    def changes_error(self) -> bool:  # type: ignore[override]
        return self.inner.changes_error

    @property
    def lr_is_step(self) -> bool:  # type: ignore[override]
        return self.inner.lr_is_step

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {**self.inner.gates, "lr": self.lr, "gamma": Gate("sigmoid", init=0.5)}

    @property
    def pair_gates(self) -> frozenset[str]:
        return frozenset({"gamma"})

    @property
    def window(self) -> int:
        return self.size

    def gain(self, gates: Gates) -> Tensor | float:
        return self.size * self.inner.gain(gates)

    def filter(self, n: int, gates: Gates) -> Filter:
        return self.inner.filter(n, gates)

    def direction(self, update: Tensor, dims: int) -> Tensor:
        return self.inner.direction(update, dims)

    def adjust(self, error: Tensor, output: Tensor) -> Tensor:
        return self.inner.adjust(error, output)


@algorithms.register("multi_step")
@dataclass(frozen=True)
class MultiStep(Algorithm):
    r"""Several gradient steps a token, each with a pair of its own, after one decay: $U_{t,j}=\eta_{t,j}g_{t,j}$.

    ``chunk_size`` counts gradient steps, so at 1 every step sees the one before it. Source: DeltaProduct
    (arXiv 2502.10297).

    Args:
        count: pairs, and so steps, per token, >= 1.
    """

    count: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("count", self.count, 1)

    @property
    def steps(self) -> int:
        return self.count

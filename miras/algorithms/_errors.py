"""Algorithms that change the error: a proximal step, and a pull to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms
from miras.biases import AttentionalBias


@algorithms.register("implicit")
@dataclass(frozen=True)
class Implicit(Algorithm):
    r"""Proximal point step of a linear memory, $W_t=\arg\min\ell(W)+\tfrac1{2\eta_t}\|W-W_{t-1}\|^2$.

    The error solves $d=\psi(p-\eta|x|^2d)$; for the squared loss it is $r/(1+\eta|x|^2)$. Source: Longhorn
    (arXiv 2407.14207), Titans Eq. 35; Huber, l1 and the others derived by us. Of a loss that is a sum over value
    channels with an affine residual, every channel may have its own learning rate, as in Longhorn.
    """

    linear_only: ClassVar[bool] = True
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per == "key":
            raise ValueError(
                "implicit needs a learning rate per head or value channel: its proximal step mixes the key's"
            )

    def error(self, bias: AttentionalBias, prediction: Tensor, target: Tensor, step: Tensor, gates: Gates) -> Tensor:
        return bias.implicit(prediction, target, step, **gates)

    def affine(self, slope: Tensor, offset: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 / (1 + slope * step)
        return slope * scale, offset * scale


@algorithms.register("dgd")
@dataclass(frozen=True)
class DGD(Algorithm):
    r"""Delta gradient descent: every matrix is also pulled to forget its own answer, $d\leftarrow d+xW$.

    The step of $\tfrac12\|Wx+\nabla_y\mathcal L\|^2$; on unit keys $W\leftarrow W(I-\eta'xx^\top)-\eta'\nabla_y\mathcal L\,x^\top$.
    Source: Nested Learning (arXiv 2512.24695) Eq. 56-57.
    """

    needs_matrices: ClassVar[bool] = True
    changes_error: ClassVar[bool] = True

    def adjust(self, error: Tensor, output: Tensor) -> Tensor:
        return error + output

    def affine(self, slope: Tensor, offset: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return slope + 1, offset

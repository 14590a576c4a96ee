"""Biases whose residual is affine in the prediction: the classical linear recurrences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.biases._base import AttentionalBias, biases


@biases.register("dot")
@dataclass(frozen=True)
class Dot(AttentionalBias):
    r"""Dot-product similarity, $-\langle p,v\rangle$: Hebbian memories and linear attention.

    Residual $-v$: it never looks at the prediction, so there is no error to overshoot and the
    curvature is 0. The paper's $-2\langle p,v\rangle$ is twice the learning rate.
    Source: MIRAS (arXiv 2504.13173) Eq. 8 and Table 1.
    """

    residual_is_affine: ClassVar[bool] = True
    residual_is_constant: ClassVar[bool] = True
    has_implicit: ClassVar[bool] = True

    @property
    def curvature(self) -> float:
        return 0.0

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -(prediction * target).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -target.expand_as(prediction)

    def affine(self, target: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(target[..., :1]), -target

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor) -> Tensor:
        return self.residual(prediction, target)


@biases.register("l2")
@dataclass(frozen=True)
class L2(AttentionalBias):
    r"""Squared error, $\tfrac12\|r\|^2$, or $\|r\|^2$ as Titans and MIRAS print it.

    Residual $r$ or $2r$; proximal residual $cr/(1+cs)$ with $c$ = 1 or 2 and $s$ the step.
    Source: MIRAS (arXiv 2504.13173) Table 1, Titans (arXiv 2501.00663) Eq. 12.

    Args:
        half: whether the loss carries the factor ½; without it the residual is twice as large.
    """

    residual_is_affine: ClassVar[bool] = True
    has_implicit: ClassVar[bool] = True
    half: bool = True

    @property
    def curvature(self) -> float:
        return 1.0 if self.half else 2.0

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 0.5 * self.curvature * (prediction - target).square().sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.curvature * (prediction - target)

    def affine(self, target: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(target[..., :1], self.curvature), -self.curvature * target

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor) -> Tensor:
        return self.residual(prediction, target) / (1 + self.curvature * step)

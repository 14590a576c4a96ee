"""Biases whose residual is affine in the prediction: the classical linear recurrences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.biases._base import AttentionalBias, biases
from miras.gates import Gate


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


@biases.register("feedback")
@dataclass(frozen=True)
class Feedback(AttentionalBias):
    r"""Correlation and squared error in a ratio that is a gate, $\tfrac b2\|p\|^2-\langle p,v\rangle$.

    Residual $bp-v$: the answer is fed back with strength $b_t$, from 0 (`dot`) to 1 (`l2`, whose loss it is up to a
    constant); proximal residual $(bp-v)/(1+bs)$ with $s$ the step. One pair a token with $b_t=\sigma(\cdot)$ is the
    closed loop of Comba (arXiv 2506.02475), whose feedback key is $b_tk_t$; two pairs with $b=1$ and $b=0$ erase and write
    along keys of their own, as RWKV-7 (2503.14456) does.
    """

    residual_is_affine: ClassVar[bool] = True
    has_implicit: ClassVar[bool] = True

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"feedback": Gate("sigmoid", init=0.75)}

    def loss(self, prediction: Tensor, target: Tensor, feedback: Tensor) -> Tensor:
        return (0.5 * feedback * prediction.square() - prediction * target).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor, feedback: Tensor) -> Tensor:
        return feedback * prediction - target

    def affine(self, target: Tensor, feedback: Tensor) -> tuple[Tensor, Tensor]:
        return feedback.expand(*target.shape[:-1], 1), -target

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor, feedback: Tensor) -> Tensor:
        return self.residual(prediction, target, feedback) / (1 + feedback * step)

"""Biases that compare predictions only up to something: up to a constant, or up to their length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from miras.biases._base import AttentionalBias, biases, check_positive


@biases.register("kl")
@dataclass(frozen=True)
class KL(AttentionalBias):
    r"""Divergence of the distributions that value and prediction are logits of.

    Loss $\mathrm{KL}(\mathrm{softmax}(v/\tau)\,\|\,\mathrm{softmax}(p/\tau))$. Residual
    $\tfrac1\tau[\mathrm{softmax}(p/\tau)-\mathrm{softmax}(v/\tau)]$; its derivative never exceeds
    the curvature, $1/(2\tau^2)$. A constant added to all channels changes nothing.
    Extension of ours (MIRAS has f-divergences in retention only).

    Args:
        temperature: $\tau$ > 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "temperature")

    @property
    def curvature(self) -> float:
        return 0.5 / self.temperature**2

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        log_p = torch.log_softmax(prediction / self.temperature, -1)
        log_v = torch.log_softmax(target / self.temperature, -1)
        return (log_v.exp() * (log_v - log_p)).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        p = torch.softmax(prediction / self.temperature, -1)
        v = torch.softmax(target / self.temperature, -1)
        return (p - v) / self.temperature


@biases.register("cosine")
@dataclass(frozen=True)
class Cosine(AttentionalBias):
    r"""One minus the cosine, $1-\hat p^\top\hat v$ with $\hat x=x/\sqrt{x^\top x+\epsilon}$.

    Residual $\big(\hat p\,\hat p^\top\hat v-\hat v\big)/\sqrt{p^\top p+\epsilon}$: it turns the
    prediction and never exceeds $1/\sqrt\epsilon$, its size at $p=0$. That is also the curvature,
    so that one step out of an empty memory arrives at unit length; a small $\epsilon$ throws it
    far away, where there is no gradient to return.
    Extension of ours.

    Args:
        eps: what is added to the squared norms, in (0, 1].
    """

    eps: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise ValueError(f"cosine needs eps in (0, 1], got {self.eps!r}")

    @property
    def curvature(self) -> float:
        return self.eps**-0.5

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 1 - (self._unit(prediction) * self._unit(target)).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        p, v = self._unit(prediction), self._unit(target)
        cosine = (p * v).sum(-1, keepdim=True)
        return (cosine * p - v) / self._norm(prediction)

    def _unit(self, x: Tensor) -> Tensor:
        return x / self._norm(x)

    def _norm(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1, keepdim=True) + self.eps).sqrt()

"""Biases with a data-dependent threshold: robust to outliers, or to values that were shifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.biases._base import AttentionalBias, biases, check_choice, check_positive
from miras.biases._power import SmoothSign
from miras.gates import Gate


def clip_norm(x: Tensor, radius: Tensor) -> Tensor:
    """The nearest vector of norm at most ``radius``; all derivatives are finite, at zero too."""
    square = x.square().sum(-1, keepdim=True)
    inside = square <= radius.square()
    norm = torch.where(inside, 1.0, square).sqrt()  # no root is taken where none is needed
    return x * torch.where(inside, 1.0, radius / norm)


@biases.register("huber")
@dataclass(frozen=True)
class Huber(AttentionalBias):
    r"""Huber's loss of every coordinate, $\sum_jH_\delta(r_j)$: an outlier writes at most $\delta$.

    $H_\delta(a)=\tfrac12a^2$ for $|a|\le\delta$, else $\delta(|a|-\tfrac12\delta)$. Residual
    $\mathrm{clip}(r,-\delta,\delta)$; proximal residual $\mathrm{clip}(r/(1+s),-\delta,\delta)$.
    Source: MIRAS (arXiv 2504.13173) Eq. 13-14.

    Args:
        delta: initial value of the gate $\delta_t$, > 0.
        per: one threshold per ``head``, or one per ``value`` channel.
    """

    has_implicit: ClassVar[bool] = True
    delta: float = 1.0
    per: Literal["head", "value"] = "head"

    def __post_init__(self) -> None:
        check_positive(self, "delta")
        check_choice(self, "per", "head", "value")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"delta": Gate("softplus", init=self.delta, per=self.per)}

    def loss(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        error = prediction - target
        clipped = error.clamp(-delta, delta)
        return (clipped * (error - 0.5 * clipped)).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        return (prediction - target).clamp(-delta, delta)

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor, delta: Tensor) -> Tensor:
        return ((prediction - target) / (1 + step)).clamp(-delta, delta)


@biases.register("huber_norm")
@dataclass(frozen=True)
class HuberNorm(AttentionalBias):
    r"""Huber's loss of the norm, $H_\delta(\|r\|_2)$: the error of a token is clipped as a whole.

    Residual $r\min(1,\delta/\|r\|_2)$; proximal residual the same of $r/(1+s)$.
    Source: MIRAS (arXiv 2504.13173) Eq. 15.

    Args:
        delta: initial value of the gate $\delta_t$, > 0.
    """

    has_implicit: ClassVar[bool] = True
    delta: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "delta")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"delta": Gate("softplus", init=self.delta)}

    def loss(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        error = prediction - target
        clipped = clip_norm(error, delta)
        return (clipped * (error - 0.5 * clipped)).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        return clip_norm(prediction - target, delta)

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor, delta: Tensor) -> Tensor:
        return clip_norm((prediction - target) / (1 + step), delta)


@biases.register("yaad")
@dataclass(frozen=True)
class Yaad(SmoothSign):
    r"""The paper's switching rule, $\nabla\ell_2\text{ if }\|r\|\le\delta,\text{ else }\delta\nabla\ell_1$.

    Residual $r$ (or $2r$) below the threshold and $\delta\,\mathrm{Sign}(r)$ above it. This is not
    the gradient of Huber's loss, nor of any continuous one: where $\|r\|_2$ crosses $\delta$, the
    step grows by a factor of $\sqrt d$ (or half that). `Huber` and `HuberNorm` are continuous.
    Source: MIRAS (arXiv 2504.13173) Eq. 16 and 26.

    Args:
        delta: initial value of the gate $\delta_t$, > 0.
        per: one threshold per ``head``, or one per ``value`` channel, each compared with the norm.
        half: whether $\ell_2$ carries the factor ½.
        norm: what is compared with $\delta$. The paper does not say; ``l2`` is the natural reading,
            ``rms`` is $\|r\|_2/\sqrt d$ (the length of the step is then continuous), ``max`` is
            $\max_j|r_j|$.
        smooth: ``gradient`` for the sign $\tanh(\nu r)$, ``loss`` for $r/\sqrt{r^2+\epsilon}$.
        nu: steepness of the tanh, > 0.
        eps: what is added to $r^2$ by ``smooth="loss"``, > 0.
    """

    residual_is_gradient: ClassVar[bool] = False
    delta: float = 1.0
    per: Literal["head", "value"] = "head"
    half: bool = True
    norm: Literal["l2", "rms", "max"] = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "delta")
        check_choice(self, "per", "head", "value")
        check_choice(self, "norm", "l2", "rms", "max")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"delta": Gate("softplus", init=self.delta, per=self.per)}

    @property
    def curvature(self) -> float:
        return 1.0 if self.half else 2.0

    def loss(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        error = prediction - target
        square = 0.5 * self.curvature * error.square()
        return torch.where(self._is_small(error, delta), square, delta * self.absolute(error)).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        error = prediction - target
        return torch.where(self._is_small(error, delta), self.curvature * error, delta * self.sign(error))

    def _is_small(self, error: Tensor, delta: Tensor) -> Tensor:
        match self.norm:
            case "l2":
                size = error.square().sum(-1, keepdim=True)
            case "rms":
                size = error.square().mean(-1, keepdim=True)
            case "max":
                size = error.square().amax(-1, keepdim=True)
        return size <= delta.square()


@biases.register("value_shift")
@dataclass(frozen=True)
class ValueShift(AttentionalBias):
    r"""Squared error to the worst of all values within $\Delta$ of the given one.

    Loss $\max_{\|e\|\le\Delta}\tfrac12\|p-(v+e)\|^2=\tfrac12\|r\|^2+\Delta\|r\|+\tfrac12\Delta^2$,
    with $\|r\|=\sqrt{r^\top r+\epsilon}$ in the middle term. Residual $r+\Delta r/\|r\|$. The
    proximal step shortens the error by $s\Delta$, at most to zero, and divides it by $1+s$, so the
    proximal residual is $\big(r+\Delta r/\max(\|r\|,s\Delta)\big)/(1+s)$. The curvature, $1+\Delta$
    at the initial $\Delta$, is the residual of a unit error.
    Source: MIRAS (arXiv 2504.13173) Eq. 17.

    Args:
        shift: initial value of the gate $\Delta_t$, > 0.
        eps: what is added to the squared norm, > 0.
    """

    has_implicit: ClassVar[bool] = True
    shift: float = 0.1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_positive(self, "shift", "eps")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"shift": Gate("softplus", init=self.shift)}

    @property
    def curvature(self) -> float:
        return 1.0 + self.shift

    def loss(self, prediction: Tensor, target: Tensor, shift: Tensor) -> Tensor:
        square = (prediction - target).square().sum(-1, keepdim=True)
        loss = 0.5 * square + shift * (square + self.eps).sqrt() + 0.5 * shift.square()
        return loss.squeeze(-1)

    def residual(self, prediction: Tensor, target: Tensor, shift: Tensor) -> Tensor:
        error = prediction - target
        return error + shift * error / self._norm(error)

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor, shift: Tensor) -> Tensor:
        error = prediction - target
        norm = torch.maximum(self._norm(error), step * shift)
        return (error + shift * error / norm) / (1 + step)

    def _norm(self, error: Tensor) -> Tensor:
        return (error.square().sum(-1, keepdim=True) + self.eps).sqrt()

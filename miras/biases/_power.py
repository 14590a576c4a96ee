"""Biases that apply one function to every coordinate of the error: powers, and the smooth sign."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.biases._base import AttentionalBias, biases, check_choice, check_positive


def log_cosh(x: Tensor) -> Tensor:
    """``log(cosh(x))``, element by element; neither it nor its derivatives overflow."""
    return x - F.logsigmoid(2 * x) - math.log(2)


@dataclass(frozen=True, kw_only=True)
class SmoothSign(AttentionalBias, ABC):
    r"""Base of the biases that need the sign of the error.

    The outer loop differentiates through the residual and the sign has no useful derivative, so it
    is smoothed (MIRAS Remark 5), in one of two ways that are not the same.

    Args:
        smooth: ``gradient`` puts $\tanh(\nu r)$ for the sign in the gradient, as the paper says;
            ``loss`` puts $\sqrt{r^2+\epsilon}$ for $|r|$ in the loss, so the sign becomes
            $r/\sqrt{r^2+\epsilon}$.
        nu: steepness of the tanh, > 0. The paper only says large.
        eps: what is added to $r^2$, > 0.
    """

    smooth: Literal["gradient", "loss"] = "gradient"
    nu: float = 10.0
    eps: float = 1e-6
    _idle: ClassVar[Mapping[str, str]] = {"gradient": "eps", "loss": "nu"}
    """The field a way of smoothing has no use for."""

    def __post_init__(self) -> None:
        check_choice(self, "smooth", "gradient", "loss")
        check_positive(self, "nu", "eps")
        for field in dataclasses.fields(self):
            if field.name == self._idle.get(self.smooth) and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{self.name} with smooth={self.smooth!r} does not use {field.name}; leave it "
                    f"at {field.default} or choose the other smoothing"
                )

    def sign(self, error: Tensor) -> Tensor:
        """The smooth sign, element by element."""
        if self.smooth == "gradient":
            return torch.tanh(self.nu * error)
        return error / self._soft_abs(error)

    def absolute(self, error: Tensor) -> Tensor:
        """The smooth absolute value whose derivative is `sign`, element by element."""
        if self.smooth == "gradient":
            return log_cosh(self.nu * error) / self.nu
        return self._soft_abs(error)

    def _soft_abs(self, error: Tensor) -> Tensor:
        return (error.square() + self.eps).sqrt()


@biases.register("l1")
@dataclass(frozen=True)
class L1(SmoothSign):
    r"""Sum of absolute errors, $\|r\|_1$: the "value-less" memory that only learns directions.

    Residual: the smooth $\mathrm{Sign}(r)$. With ``smooth="gradient"`` the loss reported is
    $\tfrac1\nu\sum_j\log\cosh\nu r_j$, of which $\tanh(\nu r)$ is exactly the gradient.
    The proximal step of $|r_j|$ is a step of the sign that stops at zero error,
    $\mathrm{clip}(r_j/s,-1,1)$; here it is a step of the smooth sign that stops there.
    The residual never exceeds 1 and cannot diverge, so the curvature is 1, not $\nu$.
    Source: MIRAS (arXiv 2504.13173) Eq. 12, Remark 5.

    Args:
        smooth: ``gradient`` for $\tanh(\nu r)$, ``loss`` for $r/\sqrt{r^2+\epsilon}$.
        nu: steepness of the tanh, > 0.
        eps: what is added to $r^2$ by ``smooth="loss"``, > 0.
    """

    has_implicit: ClassVar[bool] = True

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.absolute(prediction - target).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.sign(prediction - target)

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor) -> Tensor:
        error = prediction - target
        sign = self.sign(error)
        overshoots = step * sign.abs() > error.abs()
        # The step is only a divisor where it is above zero, in the backward pass too.
        return torch.where(overshoots, error / torch.where(overshoots, step, 1.0), sign)


@biases.register("lp")
@dataclass(frozen=True)
class Lp(SmoothSign):
    r"""A power of the error, $\|r\|_p^p$: Moneta's bias, with $p=3$.

    Residual $p\,\mathrm{Sign}(r)\odot|r|^{p-1}$ with $|r|=\sqrt{r^2+\epsilon}$ and the smooth sign;
    it is the gradient of the loss, $\sum_j(r_j^2+\epsilon)^{p/2}$, only with ``smooth="loss"``.
    The curvature is $p\max(1,p-1)$, the larger of residual and derivative at unit error. In float32
    and with errors of $10^4$, powers above 8 overflow.
    Source: MIRAS (arXiv 2504.13173) Eq. 10-11, Remark 5.

    Args:
        p: the power, at least 1.
        smooth: ``gradient`` for the sign $\tanh(\nu r)$, ``loss`` for $r/\sqrt{r^2+\epsilon}$.
        nu: steepness of the tanh, > 0.
        eps: what is added to $r^2$, > 0.
    """

    _idle: ClassVar[Mapping[str, str]] = {"loss": "nu"}
    p: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.p < math.inf:
            raise ValueError(f"lp needs a finite power p >= 1 (the loss is convex there), got {self.p!r}")

    @property
    def residual_is_gradient(self) -> bool:  # type: ignore[override]
        """Only the surrogate loss has the residual as its gradient."""
        return self.smooth == "loss"

    @property
    def curvature(self) -> float:
        return self.p * max(1.0, self.p - 1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._soft_abs(prediction - target).pow(self.p).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = prediction - target
        return self.p * self.sign(error) * self._soft_abs(error).pow(self.p - 1)


@biases.register("log_cosh")
@dataclass(frozen=True)
class LogCosh(AttentionalBias):
    r"""Logarithm of the hyperbolic cosine, $\sum_j\log\cosh r_j$: a Huber loss without a kink.

    Residual $\tanh r$; quadratic for small errors, absolute for large ones.
    Extension of ours (MIRAS only has $\tanh\nu r$, as the smooth sign of $\ell_1$).
    """

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return log_cosh(prediction - target).sum(-1)

    def residual(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.tanh(prediction - target)

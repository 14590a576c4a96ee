"""The contract of an attentional bias, its registry, and the checks its fields share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from miras.gates import Gate
from miras.pullback import vjp
from miras.registry import Component, Registry


@dataclass(frozen=True)
class AttentionalBias(Component, ABC):
    """Base of all inner losses.

    Gates arrive as keywords, broadcastable to the prediction ``[..., T, D]``.
    """

    residual_is_gradient: ClassVar[bool] = True
    """Claims that `residual` is the gradient of `loss`."""
    residual_is_affine: ClassVar[bool] = False
    """Claims ``residual(p, v) = slope * p + offset``, `affine` giving a scalar slope a token."""
    residual_is_constant: ClassVar[bool] = False
    """Claims that the residual does not depend on the prediction (so neither do chunks)."""
    has_implicit: ClassVar[bool] = False
    """Claims that `implicit` solves the proximal step."""
    triton_residual: ClassVar[Any] = None
    """The residual for kernels, ``@triton.jit (p, v, gate, constants) -> d``, tiles ``[tokens, channels]`` in float32.

    ``gate`` is that of the only gate (``[tokens, 1]``, or ``[tokens, channels]`` if it is per value channel; 0.0 without
    one), ``constants`` is `triton_constants`. None runs in PyTorch.
    """
    triton_vjp: ClassVar[Any] = None
    """Its pull-back, ``@triton.jit (p, v, gate, d, constants) -> (dp, dv, dgate)``, each a tile like ``d``."""
    triton_rowwise: ClassVar[bool] = False
    """Whether a channel's residual depends on the other channels of its token."""
    triton_key: ClassVar[str]
    """Where the class is defined: what stands for it in the arguments of operators, in other processes too."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.triton_key = f"{cls.__module__}.{cls.__qualname__}"

    @property
    def gates(self) -> Mapping[str, Gate]:
        """The gates this bias wants."""
        return {}

    @property
    def triton_constants(self) -> tuple[float, ...]:
        """Numbers for the Triton functions, compiled in."""
        return ()

    @property
    def curvature(self) -> float:
        """Largest derivative of the residual near zero error, used by ``step_bound``.

        Where that is an artefact of smoothing (the sign of l1), or unbounded (lp), it is the size
        of the residual, or its derivative, at unit error instead: a step of ``1 / curvature`` then
        moves the prediction by at most one.
        """
        return 1.0

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, **gates: Tensor) -> Tensor:
        """The loss of every token: ``[..., T, D]`` and ``[..., T, D]`` to ``[..., T]``."""

    def residual(self, prediction: Tensor, target: Tensor, **gates: Tensor) -> Tensor:
        """The derivative of the loss with respect to the prediction, ``[..., T, D]``."""
        loss, pull, _ = vjp(lambda at: (self.loss(at["p"], target, **gates), ()), {"p": prediction})
        return pull(torch.ones_like(loss))["p"]

    def affine(self, target: Tensor, **gates: Tensor) -> tuple[Tensor, Tensor]:
        """Slope ``[..., T, 1]`` and offset ``[..., T, D]`` of an affine residual."""
        raise NotImplementedError(f"bias {self.name!r} does not claim an affine residual")

    def implicit(self, prediction: Tensor, target: Tensor, step: Tensor, **gates: Tensor) -> Tensor:
        r"""The $d$ with $d=\psi(p-\text{step}\cdot d)$, $\psi$ the residual: that after the step.

        With ``step = lr * |x|^2``, ``[..., T, 1]``, moving a linear memory by ``-lr * x (x) d``
        lands on the minimiser of the loss plus ``|W - W'|^2 / (2 lr)``. Where the loss is a
        smoothed one (l1, value_shift), the proximal step is that of the loss without smoothing,
        which may land on its kink, and the equation holds off the kink as the smoothing vanishes.
        At ``step = 0`` it is the residual, always.
        """
        raise NotImplementedError(f"bias {self.name!r} has no proximal step")


biases: Registry[AttentionalBias] = Registry("bias", AttentionalBias)


def check_positive(bias: AttentionalBias, *fields: str) -> None:
    """Raise ValueError unless these fields are finite numbers above zero."""
    for field in fields:
        value = getattr(bias, field)
        if not 0 < value < math.inf:
            raise ValueError(f"{bias.name} needs a finite {field} > 0, got {value!r}")


def check_choice(bias: AttentionalBias, field: str, *choices: str) -> None:
    """Raise ValueError unless the field is one of the choices."""
    value = getattr(bias, field)
    if value not in choices:
        raise ValueError(f"{bias.name} needs {field} to be one of {choices}, got {value!r}")

r"""Activations and layer norm as values with their pull-backs, the pieces of every closed-form tap.

A tap must be cheap and differentiable again, because the outer loop trains through the inner gradient. So each
piece returns its value with a map from the error at its output to the error at its input, sharing whatever the
two have in common, and each is made of operations that autograd, ``torch.utils.checkpoint`` and
``torch.compile`` all accept (``torch.func`` is refused by the second).

Shapes: ``z`` and ``d`` are ``[..., T, D]``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pull = Callable[[Tensor], Tensor]
ActivationName = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "tanh", "identity"]

_aten = torch.ops.aten
_TWO_ROOT_TWO_OVER_PI = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


class Activation(NamedTuple):
    """``value(z)``, and ``tap(z)`` which also returns the pull-back ``d -> d * value'(z)``."""

    value: Callable[[Tensor], Tensor]
    tap: Callable[[Tensor], tuple[Tensor, Pull]]


class _GeluPull(torch.autograd.Function):
    """``d * gelu'(z)`` in one fused kernel that keeps only ``d`` and ``z`` for its own derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, z: Tensor) -> Tensor:
        return _aten.gelu_backward(d, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g,), (d, z) = grads, ctx.saved_tensors
        square = z * z
        # gelu'' = pdf(z) (2 - z^2); the normaliser of the density goes into the exponent
        density = torch.exp(torch.rsub(square, -0.5 * math.log(2 * math.pi), alpha=0.5))
        return gelu_pull(g, z), g * d * (density * (2 - square))


def gelu_pull(d: Tensor, z: Tensor) -> Tensor:
    """``d * gelu'(z)``, differentiable to every order."""
    pulled: Tensor = _GeluPull.apply(d, z)  # pyright: ignore[reportAssignmentType]
    return pulled


def _gelu(z: Tensor) -> tuple[Tensor, Pull]:
    return F.gelu(z), lambda d: gelu_pull(d, z)


def _gelu_tanh(z: Tensor) -> tuple[Tensor, Pull]:
    # (1 + tanh u) / 2 = sigmoid(2 u), which spares an operation in the value and two in the slope
    square = z * z
    gate = torch.sigmoid(z * (_TWO_ROOT_TWO_OVER_PI * (1 + _CUBIC * square)))
    h = z * gate

    def pull(d: Tensor) -> Tensor:
        inner = _TWO_ROOT_TWO_OVER_PI * (1 + 3 * _CUBIC * square)
        return d * torch.addcmul(gate, h * (1 - gate), inner)

    return h, pull


def _silu(z: Tensor) -> tuple[Tensor, Pull]:
    gate = torch.sigmoid(z)
    h = z * gate
    return h, lambda d: d * torch.addcmul(gate, h, 1 - gate)


def _relu(z: Tensor) -> tuple[Tensor, Pull]:
    return F.relu(z), lambda d: _aten.threshold_backward(d, z, 0)


def _relu2(z: Tensor) -> tuple[Tensor, Pull]:
    r = F.relu(z)
    return r * r, lambda d: 2 * d * r


def _tanh(z: Tensor) -> tuple[Tensor, Pull]:
    h = torch.tanh(z)
    return h, lambda d: d * (1 - h * h)


def _identity(z: Tensor) -> tuple[Tensor, Pull]:
    return z, lambda d: d


ACTIVATIONS: Mapping[ActivationName, Activation] = {
    "gelu": Activation(F.gelu, _gelu),
    "gelu_tanh": Activation(lambda z: F.gelu(z, approximate="tanh"), _gelu_tanh),
    "silu": Activation(F.silu, _silu),
    "relu": Activation(F.relu, _relu),
    "relu2": Activation(lambda z: F.relu(z).square(), _relu2),
    "tanh": Activation(torch.tanh, _tanh),
    "identity": Activation(lambda z: z, _identity),
}
"""Activations by name; ``gelu`` (erf) and ``gelu_tanh`` are two functions."""


def known_activation(owner: str, name: str) -> None:
    """Refuses an unknown activation."""
    if name not in ACTIVATIONS:
        close = difflib.get_close_matches(name, ACTIVATIONS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{owner}: no activation named {name!r}{hint} (have: {', '.join(ACTIVATIONS)})")


def layer_norm(x: Tensor, eps: float) -> Tensor:
    r"""$(x-\bar x)/\sqrt{\mathrm{var}(x)+\epsilon}$ over the last axis, without gain or bias.

    Not PyTorch's own, which takes mean and variance for constants from the third derivative on.
    """
    centred, scale = _normed(x, eps)
    return centred * scale


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    return centred, torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


def layer_norm_tap(x: Tensor, eps: float) -> tuple[Tensor, Pull]:
    r"""`layer_norm` with its pull-back $(d-\overline{d}-y\,\overline{d\odot y})/\sqrt{\mathrm{var}(x)+\epsilon}$."""
    centred, scale = _normed(x, eps)
    y = centred * scale

    def pull(d: Tensor) -> Tensor:
        return (d - d.mean(-1, keepdim=True) - y * (d * y).mean(-1, keepdim=True)) * scale

    return y, pull

r"""Memories of several matrices, each with the closed form of its per-token gradients.

A tap runs the forward pass once, keeps what the backward pass needs, and pulls an error from the answer to the
output of every matrix. Nothing is recomputed and no weight gradient is ever formed.

Shapes: ``x`` is ``[..., T, d_key]``, hidden activations ``[..., T, expansion * d_key]``, an answer and its
error ``[..., T, d_value]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from miras.architectures._base import (
    Architecture,
    FastWeight,
    Tap,
    View,
    architectures,
    at_least,
    positive,
    same_width,
    unused,
)
from miras.architectures._calculus import (
    ACTIVATIONS,
    ActivationName,
    Pull,
    known_activation,
    layer_norm,
    layer_norm_tap,
)

RESIDUAL = "its answer adds the key to the output of the last matrix"


@architectures.register("low_rank")
@dataclass(frozen=True)
class LowRank(Architecture):
    r"""A product of two thin matrices, $\mathcal M(W;x)=xDU$: linear in $x$, not in its fast weights.

    Source: ours; a smaller state than `Matrix` for the price of a loss that is not convex in it.

    Args:
        rank: inner width, $\ge1$; below ``min(d_key, d_value)`` to save anything.
    """

    rank: int = 16

    def __post_init__(self) -> None:
        at_least(self, "rank", 1)

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        return {
            "down": FastWeight((d_key, self.rank), reads_key=True),
            "up": FastWeight((self.rank, d_value), writes_value=True),
        }

    def forward(self, w: View, x: Tensor) -> Tensor:
        return w.dense("up", w.dense("down", x))

    def tap(self, w: View, x: Tensor) -> Tap:
        h = w.dense("down", x)
        y = w.dense("up", h)

        def pull(error: Tensor) -> dict[str, Tensor]:
            return {"down": w.dense_t("up", error), "up": error}

        return Tap(y, {"down": x, "up": h}, {"down": h, "up": y}, pull)


@architectures.register("mlp")
@dataclass(frozen=True)
class MLP(Architecture):
    r"""A perceptron, $\mathcal M(W;x)=x+\mathrm{LN}\big(\sigma(\cdots\sigma(xW_1)\cdots)W_L\big)$.

    The defaults are the memory of Moneta, Yaad and Memora: two matrices, expansion 4, erf-GELU, residual and
    norm. TTT-MLP has the same form, ATLAS leaves the norm out, Titans vary the depth.

    Source: MIRAS (arXiv 2504.13173) §5.3, Titans (2501.00663), TTT (2407.04620) §2.7.

    Args:
        depth: number of matrices $L\ge1$.
        expansion: hidden width in units of ``d_key``, $\ge1$.
        activation: a name of `ACTIVATIONS`, between matrices.
        residual: add the key to the answer; needs ``d_key == d_value``.
        norm: layer norm over the value's channels, after the last matrix.
        bias: a fast bias vector after every matrix, zero at first.
        affine: a fast gain and shift after the norm, one and zero at first.
        eps: of the norm, positive: $\mathrm{LN}(y)=(y-\bar y)/\sqrt{\mathrm{var}(y)+\epsilon}$. Papers have none, implementations
            1e-6. A memory that decays answers ever less, the norm divides by it, and gradients through a few thousand tokens
            grow beyond measure (a small model of Titans' memory: norm 3 at 1e-2, 1e10 at 1e-6, 4096 tokens). Without decay
            1e-6 is as good.

    Raises:
        ValueError: for a value outside its range, for ``affine`` or ``eps`` without ``norm``, and for
            ``expansion`` or ``activation`` at depth 1, which has no hidden layer.
    """

    depth: int = 2
    expansion: int = 4
    activation: ActivationName = "gelu"
    residual: bool = True
    norm: bool = True
    bias: bool = False
    affine: bool = False
    eps: float = 1e-2

    def __post_init__(self) -> None:
        at_least(self, "depth", 1)
        at_least(self, "expansion", 1)
        known_activation(self.name, self.activation)
        positive(self, "eps")
        if self.depth == 1:
            unused(self, ("expansion", "activation"), "at depth=1, which has no hidden layer")
        if not self.norm:
            unused(self, ("affine", "eps"), "with norm=False")

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        if self.residual:
            same_width(self, d_key, d_value, RESIDUAL, "residual=False")
        widths = [d_key, *[self.expansion * d_key] * (self.depth - 1), d_value]
        shapes: dict[str, FastWeight] = {}
        for n in range(1, self.depth + 1):
            first, last = n == 1, n == self.depth
            size = (widths[n - 1], widths[n])
            shapes[f"w_{n}"] = FastWeight(size, reads_key=first, writes_value=last)
            if self.bias:
                shapes[f"b_{n}"] = FastWeight(size[1:], "vector", writes_value=last, init="zeros")
        if self.affine:
            shapes["gain"] = FastWeight((d_value,), "vector", writes_value=True, init="ones")
            shapes["shift"] = FastWeight((d_value,), "vector", writes_value=True, init="zeros")
        return shapes

    def forward(self, w: View, x: Tensor) -> Tensor:
        h = x
        for n in range(1, self.depth + 1):
            h = w.dense(f"w_{n}", h)
            if self.bias:
                h = h + w.vector(f"b_{n}")
            if n < self.depth:
                h = ACTIVATIONS[self.activation].value(h)
        if self.norm:
            h = layer_norm(h, self.eps)
        if self.affine:
            h = h * w.vector("gain") + w.vector("shift")
        return x + h if self.residual else h

    def tap(self, w: View, x: Tensor) -> Tap:
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        through: list[Pull] = []  # activations, then the norm
        h = x
        for n in range(1, self.depth + 1):
            inputs[f"w_{n}"] = h
            h = outputs[f"w_{n}"] = w.dense(f"w_{n}", h)
            if self.bias:
                h = h + w.vector(f"b_{n}")
            if n < self.depth:
                h, pull_activation = ACTIVATIONS[self.activation].tap(h)
                through.append(pull_activation)
        if self.norm:
            h, pull_norm = layer_norm_tap(h, self.eps)
            through.append(pull_norm)
        normed, gain = h, None
        if self.affine:
            gain = w.vector("gain")
            h = h * gain + w.vector("shift")

        def pull(error: Tensor) -> dict[str, Tensor]:
            errors: dict[str, Tensor] = {}
            d, pulls = error, list(through)
            if gain is not None:
                errors["gain"], errors["shift"] = d * normed, d
                d = d * gain
            if self.norm:
                d = pulls.pop()(d)
            for n in range(self.depth, 0, -1):
                errors[f"w_{n}"] = d
                if self.bias:
                    errors[f"b_{n}"] = d
                if n > 1:
                    d = pulls.pop()(w.dense_t(f"w_{n}", d))
            return errors

        return Tap(x + h if self.residual else h, inputs, outputs, pull)

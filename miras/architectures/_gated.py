r"""Memories with gates, each with the closed form of its per-token gradients.

Shapes: ``x`` is ``[..., T, d_key]``, hidden activations ``[..., T, expansion * d_key]``, an answer and its
error ``[..., T, d_value]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
from miras.architectures._mlp import RESIDUAL


@architectures.register("gated_mlp")
@dataclass(frozen=True)
class GatedMLP(Architecture):
    r"""A gated perceptron, $\mathcal M(W;x)=\big(\sigma(xW_g)\odot xW_u\big)W_d$, SwiGLU with the default SiLU.

    LaCT as it stands; with ``residual`` the memory of ATLAS++.

    Source: LaCT (arXiv 2505.23884), ATLAS (2505.23735) App. E.

    Args:
        expansion: hidden width in units of ``d_key``, $\ge1$.
        activation: a name of `ACTIVATIONS`, on the gate.
        residual: add the key to the answer; needs ``d_key == d_value``.
        norm: layer norm over the value's channels, after the last matrix.
        eps: of the norm, positive; see `MLP`.

    Raises:
        ValueError: for a value outside its range, and for ``eps`` without ``norm``.
    """

    expansion: int = 4
    activation: ActivationName = "silu"
    residual: bool = False
    norm: bool = False
    eps: float = 1e-2

    def __post_init__(self) -> None:
        at_least(self, "expansion", 1)
        known_activation(self.name, self.activation)
        positive(self, "eps")
        if not self.norm:
            unused(self, ("eps",), "with norm=False")

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        if self.residual:
            same_width(self, d_key, d_value, RESIDUAL, "residual=False")
        hidden = self.expansion * d_key
        return {
            "gate": FastWeight((d_key, hidden), reads_key=True),
            "up": FastWeight((d_key, hidden), reads_key=True),
            "down": FastWeight((hidden, d_value), writes_value=True),
        }

    def forward(self, w: View, x: Tensor) -> Tensor:
        gate = ACTIVATIONS[self.activation].value(w.dense("gate", x))
        y = w.dense("down", gate * w.dense("up", x))
        if self.norm:
            y = layer_norm(y, self.eps)
        return x + y if self.residual else y

    def tap(self, w: View, x: Tensor) -> Tap:
        z, u = w.dense("gate", x), w.dense("up", x)
        gate, pull_activation = ACTIVATIONS[self.activation].tap(z)
        h = gate * u
        o = w.dense("down", h)
        y, pull_norm = layer_norm_tap(o, self.eps) if self.norm else (o, None)

        def pull(error: Tensor) -> dict[str, Tensor]:
            d = error if pull_norm is None else pull_norm(error)
            hidden = w.dense_t("down", d)
            return {"gate": pull_activation(hidden * u), "up": hidden * gate, "down": d}

        inputs = {"gate": x, "up": x, "down": h}
        outputs = {"gate": z, "up": u, "down": o}
        return Tap(x + y if self.residual else y, inputs, outputs, pull)


@architectures.register("gated_residual_mlp")
@dataclass(frozen=True)
class GatedResidualMLP(Architecture):
    r"""A stack of perceptrons, each mixed into the stream by a gate that sees both.

    $h=\sigma(xW_{up})W_{down}$, $s=\mathrm{sigmoid}(xW_{gx}+hW_{gh})$, $x\leftarrow x+s\odot(h-x)$, ``depth``
    times, then an optional layer norm. The stream keeps the width of the key, so ``d_key == d_value``, and its
    channels count as the key's where they are read and as the value's where they are written.

    Source: the gated residual memory of the public ``titans-pytorch`` package, without its final projection.

    Args:
        depth: number of layers, $\ge1$.
        expansion: hidden width in units of ``d_key``, $\ge1$.
        activation: a name of `ACTIVATIONS`.
        norm: layer norm over the value's channels, at the end.
        eps: of the norm, positive; see `MLP`.

    Raises:
        ValueError: for a value outside its range, and for ``eps`` without ``norm``.
    """

    depth: int = 2
    expansion: int = 4
    activation: ActivationName = "gelu"
    norm: bool = False
    eps: float = 1e-2

    def __post_init__(self) -> None:
        at_least(self, "depth", 1)
        at_least(self, "expansion", 1)
        known_activation(self.name, self.activation)
        positive(self, "eps")
        if not self.norm:
            unused(self, ("eps",), "with norm=False")

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        same_width(self, d_key, d_value, "every layer mixes into the key", "architecture='mlp'")
        hidden = self.expansion * d_key
        mix = FastWeight((d_key, d_value), reads_key=True, writes_value=True)
        shapes: dict[str, FastWeight] = {}
        for n in range(1, self.depth + 1):
            shapes[f"up_{n}"] = FastWeight((d_key, hidden), reads_key=True)
            shapes[f"down_{n}"] = FastWeight((hidden, d_value), writes_value=True)
            shapes[f"gate_x_{n}"] = shapes[f"gate_h_{n}"] = mix
        return shapes

    def forward(self, w: View, x: Tensor) -> Tensor:
        for n in range(1, self.depth + 1):
            h = ACTIVATIONS[self.activation].value(w.dense(f"up_{n}", x))
            h = w.dense(f"down_{n}", h)
            s = torch.sigmoid(w.dense(f"gate_x_{n}", x) + w.dense(f"gate_h_{n}", h))
            x = x + s * (h - x)
        return layer_norm(x, self.eps) if self.norm else x

    def tap(self, w: View, x: Tensor) -> Tap:
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        layers: list[tuple[Pull, Tensor, Tensor]] = []

        def dense(name: str, x: Tensor) -> Tensor:
            inputs[name] = x
            outputs[name] = w.dense(name, x)
            return outputs[name]

        for n in range(1, self.depth + 1):
            h, pull_activation = ACTIVATIONS[self.activation].tap(dense(f"up_{n}", x))
            h = dense(f"down_{n}", h)
            s = torch.sigmoid(dense(f"gate_x_{n}", x) + dense(f"gate_h_{n}", h))
            step = h - x
            layers.append((pull_activation, s, step))
            x = x + s * step
        y, pull_norm = layer_norm_tap(x, self.eps) if self.norm else (x, None)

        def pull(error: Tensor) -> dict[str, Tensor]:
            errors: dict[str, Tensor] = {}
            d = error if pull_norm is None else pull_norm(error)
            for n in range(self.depth, 0, -1):
                pull_activation, s, step = layers[n - 1]
                kept = d * s
                gate = kept * step * (1 - s)
                down = kept + w.dense_t(f"gate_h_{n}", gate)
                up = pull_activation(w.dense_t(f"down_{n}", down))
                errors |= {f"up_{n}": up, f"down_{n}": down}
                errors |= {f"gate_x_{n}": gate, f"gate_h_{n}": gate}
                if n > 1:
                    d = d - kept + w.dense_t(f"gate_x_{n}", gate) + w.dense_t(f"up_{n}", up)
            return errors

        return Tap(y, inputs, outputs, pull)

r"""The contract of all architectures: fast weights, views of them, and per-token gradients in factored form.

An architecture is written once, against an injected view of its fast weights. The engine interprets that view
as the anchor weights (and records every input of a matrix with the output error, for all tokens at once), as
one weight per token, or as a factored read that never builds a per-token weight. Three lines of ``forward``
are therefore chunk-parallel with no further work.

Shapes: ``...`` batch and head, ``T`` tokens, ``D`` any width, ``I -> O`` input and output of a matrix.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from miras.pullback import vjp
from miras.registry import Component, Registry


class FastWeight(NamedTuple):
    """Shape of one fast weight, and which of its axes are the key's and the value's channels.

    ``dense`` is a matrix ``[I, O]`` applied on the right; ``vector`` a gain or a bias; ``tensor`` anything else
    (parameters of a wrapped ``nn.Module``). A gate per key channel acts on the input axis of matrices that read
    the key, one per value channel on the output axis of those that write the value. ``index`` is the weight's place
    among those of a memory (`AssociativeMemory.shapes` counts them), for gates per weight.
    """

    shape: tuple[int, ...]
    kind: Literal["dense", "vector", "tensor"] = "dense"
    reads_key: bool = False
    writes_value: bool = False
    init: Literal["normal", "ones", "zeros"] = "normal"
    index: int = 0


class View(Protocol):
    """Fast weights as an architecture sees them. Activations are ``[..., T, D]``."""

    def dense(self, name: str, x: Tensor) -> Tensor:
        """``x @ W``."""
        ...

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        """``d @ W.T``: pulls an error back through the matrix."""
        ...

    def vector(self, name: str) -> Tensor:
        """A vector weight, broadcastable to ``[..., T, D]``."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A whole weight, ``[..., T, *shape]`` or, when all tokens share it, ``[..., 1, *shape]``."""
        ...


class Tap(NamedTuple):
    """All per-token gradients of a chunk in factored form.

    ``inputs[n]`` holds the input of matrix ``n`` and ``outputs[n]`` its product, before any bias;
    ``pull(error)`` returns, for every fast weight, the error at its output: the gradient of matrix ``n`` for
    token ``t`` is ``inputs[n][t] (x) pull(e)[n][t]``, that of a vector or tensor is ``pull(e)[n][t]`` itself.
    """

    prediction: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    pull: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture(Component, ABC):
    """Base of all memory architectures."""

    is_linear: ClassVar[bool] = False
    """Claims ``forward(w, x) = w.dense(name, features(x))`` with a single matrix."""
    has_matrices: ClassVar[bool] = True
    """Claims a fast weight of kind ``dense``."""

    @abstractmethod
    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        """The fast weights for keys of width ``d_key`` and values of width ``d_value``."""

    @abstractmethod
    def forward(self, w: View, x: Tensor) -> Tensor:
        """The memory's answer to ``x`` of shape ``[..., T, d_key]``: ``[..., T, d_value]``."""

    def features(self, x: Tensor) -> Tensor:
        """The input of the single matrix of a linear architecture."""
        return x

    def tap(self, w: View, x: Tensor) -> Tap:
        """Prediction and per-token gradients; override with a closed form where speed matters."""
        return generic_tap(self, w, x)

    def init(
        self,
        d_key: int,
        d_value: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        r"""Initial fast weights of one head: matrices $\mathcal N(0, 1/\text{fan-in})$, vectors as they declare.

        Args:
            d_key: width of the keys.
            d_value: width of the values.
            generator: source of the random numbers; the weights are made on its device.
            dtype: of the weights; torch's default where left out.
        """
        options: dict[str, Any] = {"dtype": dtype}
        if generator is not None:
            options["device"] = generator.device

        def draw(weight: FastWeight) -> Tensor:
            match weight.init:
                case "ones":
                    return torch.ones(weight.shape, **options)
                case "zeros":
                    return torch.zeros(weight.shape, **options)
                case "normal":
                    fan_in = weight.shape[0] if weight.kind == "dense" else 1
                    normal = torch.randn(weight.shape, generator=generator, **options)
                    return normal / math.sqrt(fan_in)

        return {name: draw(weight) for name, weight in self.shapes(d_key, d_value).items()}


architectures: Registry[Architecture] = Registry("architecture", Architecture)


def generic_tap(architecture: Architecture, w: View, x: Tensor) -> Tap:
    """Every per-token gradient of a chunk from one vector-Jacobian product.

    Adding a zero perturbation to every output of a matrix and, token by token, to every vector and tensor makes
    the pull-back with respect to the perturbations the error at that place, because tokens do not interact.
    """
    perturb = _Perturbed(w, x)
    with torch.no_grad():
        architecture.forward(perturb, x)  # finds the names and shapes of all places
    zeros = {n: y.new_zeros(y.shape) for n, y in perturb.places.items()}

    def run(taps: dict[str, Tensor]) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        view = _Perturbed(w, x, taps)
        return architecture.forward(view, x), (view.inputs, view.outputs)

    prediction, pull, (inputs, outputs) = vjp(run, zeros)
    return Tap(prediction, inputs, outputs, pull)


class _Perturbed:
    """A view that records inputs and outputs and adds a perturbation at every place a weight enters."""

    def __init__(self, w: View, x: Tensor, taps: Mapping[str, Tensor] | None = None):
        self.w, self.taps = w, taps
        self.tokens = x.shape[:-1]
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.places: dict[str, Tensor] = {}

    def _place(self, name: str, y: Tensor) -> Tensor:
        if name in self.places:
            raise ValueError(f"fast weight {name!r} is used twice in one forward; give each use its own name")
        self.places[name] = y
        return y if self.taps is None else y + self.taps[name]

    def dense(self, name: str, x: Tensor) -> Tensor:
        self.inputs[name] = x
        self.outputs[name] = self.w.dense(name, x)
        return self._place(name, self.outputs[name])

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        return self.w.dense_t(name, d)

    # A weight that all tokens share is expanded to one per token: one perturbation would sum their gradients.
    def vector(self, name: str) -> Tensor:
        y = self.w.vector(name)
        return self._place(name, y.expand(*self.tokens, y.shape[-1]))

    def tensor(self, name: str) -> Tensor:
        y = self.w.tensor(name)
        return self._place(name, y.expand(*self.tokens, *y.shape[len(self.tokens) :]))


def at_least(component: Architecture, field: str, low: int) -> None:
    """Refuses a field that is not a whole number of at least ``low``."""
    value = getattr(component, field)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{component.name}: {field} must be a whole number >= {low}; got {value!r}")


def positive(component: Architecture, field: str) -> None:
    """Refuses a field that is not a positive finite number."""
    value = getattr(component, field)
    if not 0 < value < math.inf:
        raise ValueError(f"{component.name}: {field} must be positive and finite; got {value!r}")


def unused(component: Architecture, names: tuple[str, ...], because: str) -> None:
    """Refuses options that would be silently ignored."""
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if field.name in names and value != field.default:
            raise ValueError(f"{component.name}: {field.name}={value!r} has no effect {because}; leave it out")


def same_width(component: Architecture, d_key: int, d_value: int, why: str, instead: str) -> None:
    """Refuses keys and values of different widths."""
    if d_key != d_value:
        raise ValueError(
            f"{component.name} needs keys and values of one width because {why}; got d_key={d_key} "
            f"and d_value={d_value}: pass {instead}, or equal widths"
        )

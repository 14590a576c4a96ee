r"""Any ``nn.Module`` as a memory.

Shapes: ``...`` batch and head, ``T`` tokens; a weight is ``[..., T, *shape]``, or ``[..., 1, *shape]`` where all
tokens share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from miras.architectures._base import Architecture, FastWeight, View, architectures

Factory = Callable[[int, int], nn.Module]


@architectures.register("from_module")
@dataclass(frozen=True, repr=False)
class FromModule(Architecture):
    r"""Any module, $\mathcal M(W;x)=f_W(x)$: every parameter is a fast weight, named as in ``named_parameters``.

    Each token meets its own weights and arrives as a batch of one, ``[1, d_key] -> [1, d_value]``, so linear
    layers, biases, norms and convolutions behind an ``nn.Unflatten`` all work, at ``d_key != d_value`` too. A
    per-token gradient of such a weight has no factored form, so the memory runs on the reference and
    materialised paths. Two of these are equal when their factories are.

    Args:
        factory: from ``(d_key, d_value)`` to a module without dropout and without buffers. Its own
            initialisation is the memory's.

    Raises:
        ValueError: from ``shapes``, for a module that cannot be a memory, with the reason.
    """

    has_matrices: ClassVar[bool] = False
    factory: Factory
    # One module for each pair of widths, made by `shapes`, so never inside a compiled forward pass.
    _modules: dict[tuple[int, int], nn.Module] = field(
        default_factory=dict[tuple[int, int], nn.Module], init=False, compare=False
    )

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise ValueError(
                f"factory must be a function of (d_key, d_value) that returns a module, got {self.factory!r}"
            )

    def __repr__(self) -> str:
        return f"from_module({_describe(self.factory)})"

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        module = self._module(d_key, d_value)
        return {name: FastWeight(shape, "tensor") for name, shape in _shapes(module).items()}

    def init(
        self,
        d_key: int,
        d_value: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        self._module(d_key, d_value)  # refuses what cannot be a memory
        if generator is None:
            module = self.factory(d_key, d_value)
        else:  # modules draw from the global generator, which is seeded from this one and put back
            seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self.factory(d_key, d_value)
        device = None if generator is None else generator.device
        return {n: p.detach().to(device=device, dtype=dtype) for n, p in module.named_parameters()}

    # The per-token gradients are the generic tap's. Taking them inside the maps over tokens (`vmap` of `vjp`)
    # would not copy shared weights, but torch then differentiates LayerNorm's gradient wrongly and says nothing.
    def forward(self, w: View, x: Tensor) -> Tensor:
        module = self._owner(w, x.shape[-1])
        return _each_token(module, {name: w.tensor(name) for name in _shapes(module)}, x)

    def _module(self, d_key: int, d_value: int) -> nn.Module:
        if (d_key, d_value) not in self._modules:
            with torch.random.fork_rng(devices=[]):  # looking at a module must not move the seed
                module = self.factory(d_key, d_value)
            module = _checked(self, module, d_key, d_value)
            for (d, other), known in self._modules.items():
                if d == d_key and _shapes(known) == _shapes(module):
                    raise ValueError(
                        f"{self}: its weights have the same shapes for d_value={other} and d_value={d_value}, so "
                        "nothing tells the two apart; make another from_module for the second"
                    )
            self._modules[d_key, d_value] = module
        return self._modules[d_key, d_value]

    def _owner(self, w: View, d_key: int) -> nn.Module:
        """The module these weights belong to; the width of the value shows only in their shapes."""
        modules = [module for (d, _), module in self._modules.items() if d == d_key]
        for module in modules:
            if len(modules) == 1 or _fits(module, w):
                return module
        raise ValueError(f"{self}: no module for these weights; call shapes({d_key}, d_value) first")


def from_module(factory: Factory) -> FromModule:
    """Any ``nn.Module`` as a memory: all its parameters become fast weights.

    Args:
        factory: from ``(d_key, d_value)``, the widths of one head, to a module that maps ``[1, d_key]`` to
            ``[1, d_value]``.

    Raises:
        ValueError: when the memory is built, for a module with dropout, buffers, no parameters or another
            output shape.

    Example:
        >>> from torch import nn
        >>> memory = from_module(lambda d_k, d_v: nn.Sequential(nn.Linear(d_k, 32), nn.Tanh(), nn.Linear(32, d_v)))
        >>> list(memory.shapes(8, 4))
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    return FromModule(factory)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def _fits(module: nn.Module, w: View) -> bool:
    try:
        return all(w.tensor(name).shape[-len(shape) :] == shape for name, shape in _shapes(module).items() if shape)
    except KeyError:
        return False


def _each_token(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Maps the module over batch and head, then over tokens, each a batch of one with its own weights.

    A weight that all tokens share is left out of the inner map, which keeps the matrix products large.
    """
    *lead, length, _ = x.shape
    flat: dict[str, Tensor] = {}
    axes: dict[str, int | None] = {}
    for name, shape in _shapes(module).items():
        y = weights[name]
        tokens = y.shape[y.ndim - len(shape) - 1]
        y = y.expand(*lead, tokens, *shape)
        shared = tokens == 1
        flat[name] = y.reshape(-1, *shape) if shared else y.reshape(-1, length, *shape)
        axes[name] = None if shared else 0

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x[None],))[0]

    y: Tensor = vmap(vmap(one, in_dims=(axes, 0)))(flat, x.reshape(-1, *x.shape[-2:]))
    return y.reshape(*lead, *y.shape[1:])


def _checked(owner: FromModule, module: nn.Module, d_key: int, d_value: int) -> nn.Module:
    """The module, or the reason why it cannot be a memory."""
    for name, child in module.named_modules():
        drops = "drop" in type(child).__name__.lower()
        rate = getattr(child, "p" if drops else "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ValueError(
                f"{owner}: {name or type(child).__name__!r} drops at random (p={rate}), but a memory is written and "
                "read by the same function: leave dropout out, or apply it outside the memory"
            )
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ValueError(
            f"{owner}: the buffers {', '.join(buffers)} would be shared by all tokens, heads and rows; make them "
            "parameters, or use a layer without running statistics (LayerNorm, GroupNorm)"
        )
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError(f"{owner}: {type(module).__name__} has no parameters, so nothing to learn")
    module = module.eval()
    x = torch.zeros(2, d_key, dtype=next(iter(parameters.values())).dtype)
    try:
        y = _each_token(module, {n: p[None] for n, p in parameters.items()}, x)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"{owner}: the module could not map one token, [1, {d_key}] to [1, {d_value}]: {error}"
        ) from error
    if y.shape != (2, d_value):
        raise ValueError(
            f"{owner}: the module must map [1, {d_key}] to [1, {d_value}]; it answered {list(y.shape[1:])}"
        )
    return module


def _describe(factory: Factory) -> str:
    """A name a reader can find: where it was written, for a lambda."""
    name = getattr(factory, "__qualname__", repr(factory)).rpartition("<locals>.")[2]
    if name != "<lambda>":
        return name
    code = inspect.unwrap(factory).__code__
    return f"<lambda at {Path(code.co_filename).name}:{code.co_firstlineno}>"

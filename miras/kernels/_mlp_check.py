"""Whether a compiler got the kernels of the perceptron right: a few chunks against the PyTorch path, once a configuration.

Compilers have got single tile shapes wrong, silently: a hidden tile of 32 in `_mlp_reverse` gave gradients off by half.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from miras.architectures import MLP, layer_norm
from miras.biases import AttentionalBias
from miras.engine import fused
from miras.kernels import _mlp_ops
from miras.kernels._mlp_ops import Given

LIMIT = 0.05
"""Relative error of outputs and gradients; rounding to bfloat16 makes 0.01, a wrong program more than this."""

CHUNKS = 3


class Sizes(NamedTuple):
    """What kernels are compiled for, besides the recipe."""

    key: int
    value: int
    hidden: int
    slots: int
    bounded: bool
    gate: int  # width of the bias's gate, 0 for none


@functools.cache
def trusted(
    architecture: MLP, bias: AttentionalBias, chunk: int, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether outputs, states and gradients agree; warns if they do not."""
    with torch.enable_grad():
        x = _problem(chunk, sizes)
        key = _mlp_ops.remember(architecture, bias, chunk)
        got = _gradients(lambda t: _kernel(t, key), x, device, dtype)
        recipe = fused.Recipe(architecture, bias, chunk)
        wanted = _gradients(lambda t: _pytorch(t, recipe), x, device, torch.float64)
    errors = [((a.double() - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in zip(got, wanted, strict=True)]
    if all(e <= LIMIT for e in errors):  # a NaN is not
        return True
    warnings.warn(
        f"Triton {version('triton')} compiles the kernels of {architecture.name!r} wrongly for this device and {sizes} "
        f"(relative error {max(errors):.2g}); PyTorch runs instead",
        stacklevel=2,
    )
    return False


def _problem(chunk: int, s: Sizes) -> Given:
    """Two heads at a small learning rate, far from kinks; what slot rows take from the memory is zero, as in every filter."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    b, tokens, j = 2, CHUNKS * chunk, 1 + s.slots
    seen = torch.rand(b, CHUNKS, j, chunk, generator=g, dtype=torch.float64)
    mix = torch.tensor([[0.9, 0.5], [0.0, 0.6]], dtype=torch.float64)[:j, :j].expand(b, CHUNKS, j, j)
    return Given(
        q=normal(b, tokens, s.key) / s.key**0.5,
        k=normal(b, tokens, s.key) / s.key**0.5,
        v=normal(b, tokens, s.value),
        lr=torch.full((b, tokens), 0.01 / chunk, dtype=torch.float64),
        inverse=torch.full((b, tokens), 5.0 * chunk, dtype=torch.float64) if s.bounded else None,
        rows=seen,
        pairs=torch.rand(b, CHUNKS, chunk, chunk, generator=g, dtype=torch.float64).tril(),
        into=seen - 1,
        mix=mix,
        w1=normal(b, j, s.key, s.hidden) / s.key**0.5,
        w2=normal(b, j, s.hidden, s.value) / s.hidden**0.5,
        gate=torch.full((b, tokens, s.gate), 100.0, dtype=torch.float64) if s.gate else None,
    )


Run = Callable[[Given], tuple[Tensor, ...]]


def _gradients(run: Run, x: Given, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, and gradients of a random function of them with respect to everything but the mixing."""
    wide = torch.promote_types(dtype, torch.float32)
    narrow = {"q", "k", "v", "pairs"}
    leaves = Given._make(
        None if t is None else t.to(device, dtype if n in narrow else wide).requires_grad_()
        for n, t in x._asdict().items()
    )
    outputs = run(leaves)
    g = torch.Generator().manual_seed(1)
    up = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in outputs]
    wanted = [t for n, t in leaves._asdict().items() if t is not None and n != "mix"]
    return [*outputs, *torch.autograd.grad(outputs, wanted, up)]


def _kernel(x: Given, key: str) -> tuple[Tensor, ...]:
    y, _, _, _, *ends = _mlp_ops.perceptron(*x, key, True)
    return y, *ends


def _pytorch(x: Given, recipe: fused.Recipe) -> tuple[Tensor, ...]:
    slots = -x.rows[:, :, 1].unsqueeze(-1) if x.rows.shape[2] > 1 else None
    gates = () if x.gate is None else (x.gate,)
    o, *ends = fused.Chunks.apply(
        recipe, x.q, x.k, x.v, x.lr, x.inverse, x.rows[:, :, 0], x.pairs, slots, x.mix, x.into, x.w1, x.w2, *gates
    )
    o = layer_norm(o, recipe.architecture.eps) if recipe.architecture.norm else o
    return (x.q + o if recipe.architecture.residual else o), *ends

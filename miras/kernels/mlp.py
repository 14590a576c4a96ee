"""The perceptron of two matrices on Triton kernels: one forward scan; backward in groups of chunks from kept weights.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from miras.kernels import mlp_bias as bias
from miras.kernels import mlp_parts as parts
from miras.kernels.mlp_read import read_backward
from miras.kernels.mlp_reverse import reverse
from miras.kernels.mlp_scan import scan

ACTIVATIONS: Mapping[str, Any] = {
    "gelu": parts.gelu,
    "gelu_tanh": parts.gelu_tanh,
    "silu": parts.silu,
    "relu": parts.relu,
    "relu2": parts.relu2,
    "tanh": parts.tanh,
    "identity": parts.identity,
}


@dataclass(frozen=True)
class Recipe:
    """What is not a tensor."""

    chunk: int
    activation: str
    norm: bool
    residual: bool
    eps: float
    limit: float
    bias: Any
    vjp: Any
    constants: tuple[float, ...] = ()
    tile: int = 64
    group: int = 0

    def of(self, *names: str) -> dict[str, Any]:
        every = {
            "BIAS": self.bias,
            "VJP": self.vjp,
            "P": self.constants,
            "ACT": ACTIVATIONS[self.activation],
            "NORM": self.norm,
            "RESIDUAL": self.residual,
            "EPS": self.eps,
        }
        return {n: every[n] for n in names or every}


class Given(NamedTuple):
    """The tensors of `miras.engine.fused`, contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    inverse: Tensor | None
    carry: Tensor
    pairs: Tensor
    slot: Tensor | None
    mix: Tensor
    into: Tensor
    w1: Tensor
    w2: Tensor
    gate: Tensor | None = None

    def sizes(self, recipe: Recipe) -> dict[str, Any]:
        """What every kernel is specialised for."""
        (_, length, i), (o, f) = self.q.shape, (self.v.shape[-1], self.w1.shape[-1])
        gate = 0 if self.gate is None else 1 if self.gate.dim() == 2 or self.gate.shape[-1] == 1 else 2
        return {
            "C": recipe.chunk,
            "I": i,
            "O": o,
            "F": f,
            "BF": min(recipe.tile, f),
            "SLOT": self.slot is not None,
            "BOUND": self.inverse is not None,
            "GATE": gate,
        }


class Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: Recipe, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = Given(*(t if t is None else t.contiguous() for t in tensors))
        every = recipe.group or max(8, 1024 // x.q.shape[0])
        kept = [x.q.new_empty(x.q.shape[0], -(-x.carry.shape[1] // every), *w.shape[1:], dtype=torch.float32) for w in (x.w1, x.w2)]
        out, ends = _forward(recipe, x, kept, every)
        ctx.save_for_backward(*x, *kept)
        ctx.recipe, ctx.every, ctx.count = recipe, every, len(x)
        return out, *ends

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_w1: Tensor, d_w2: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = Given(*ctx.saved_tensors[: ctx.count]), ctx.saved_tensors[ctx.count :]
        return None, *_backward(ctx.recipe, x, kept, ctx.every, d_out.to(x.v.dtype).contiguous(), d_w1, d_w2)


def _exchange(x: Given, sizes: Mapping[str, Any], vectors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what tiles tell each other: sums over the hidden width, sums over rows, answers, tickets."""
    tiles, b, c = sizes["F"] // sizes["BF"], x.q.shape[0], sizes["C"]
    sums = x.w1.new_empty(2, b, 2, tiles, c, sizes["O"])
    rows = x.w1.new_empty(b, 2, vectors, tiles, c)
    return sums[0], rows, sums[1], torch.zeros(1 + b, dtype=torch.int32, device=x.q.device)


def _scan(recipe: Recipe, x: Given, w: tuple[Tensor, Tensor], results: tuple[Any, ...], span: tuple[int, int, int], read: bool) -> None:
    sizes = x.sizes(recipe)
    tiles = sizes["F"] // sizes["BF"]
    rows = triton.next_power_of_2(-(-recipe.chunk // tiles))
    sums, norms, answers, tickets = _exchange(x, sizes, 2)
    scan[(x.q.shape[0] * tiles,)](
        x.q, x.k, x.v, x.gate, x.lr, x.inverse, x.carry, x.pairs, x.slot, x.mix, x.into,
        *w, w[0].stride(0), w[1].stride(0), *results, sums, norms, answers, tickets, *span,
        **sizes, ROWS=rows, READ=read, SAVE=not read, **recipe.of("BIAS", "P", "ACT", "NORM", "RESIDUAL", "EPS"),
        num_warps=8, num_stages=1,
    )  # fmt: skip


def _forward(recipe: Recipe, x: Given, kept: list[Tensor], every: int) -> tuple[Tensor, list[Tensor]]:
    out = x.w1.new_empty(*x.v.shape)
    ends = [torch.empty_like(x.w1), torch.empty_like(x.w2)]
    n = x.carry.shape[1]
    _scan(recipe, x, (x.w1, x.w2), (out, *ends, *kept, every, None, None, None, None), (0, n, n), True)
    return out, ends


def _backward(
    recipe: Recipe, x: Given, kept: tuple[Tensor, ...], every: int, d_out: Tensor, d_w1: Tensor, d_w2: Tensor
) -> list[Tensor | None]:
    sizes = x.sizes(recipe)
    b, n, c, o, f = x.q.shape[0], x.carry.shape[1], recipe.chunk, sizes["O"], sizes["F"]
    tiles = f // sizes["BF"]
    d_w1, d_w2 = d_w1.contiguous().clone(), d_w2.contiguous().clone()

    def like(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.empty_like(t)

    d_k = x.w1.new_empty(*x.k.shape)
    d = Given(like(x.q), d_k, *(like(t) for t in x[2:10]), d_w1, d_w2, like(x.gate))
    dtype, fresh = x.q.dtype, x.q.new_empty
    g = min(every, n)
    wide = [fresh(b, g, c, f) for _ in range(4)]
    seen = [fresh(b, g, w.shape[1], *s) for w, s in ((x.w1, x.w1.shape[2:]), (x.w2, x.w2.shape[:1:-1]))]
    kept_o, d_u2 = (x.w1.new_empty(b, g, c, o) for _ in range(2))
    squares, d_rates = (x.w1.new_empty(b, g, 2, c) for _ in range(2))
    scratch = fresh(b, g, 2, c, c)
    k_parts = x.w1.new_empty(b * tiles * g * c * sizes["I"])
    mixes: list[Tensor] = []
    for i in reversed(range(kept[0].shape[1])):
        first, count = i * every, min(every, n - i * every)
        span = first, count, n
        mix_parts = x.w1.new_empty(b, tiles, count, *x.mix.shape[2:])
        results = (None, None, None, None, None, every, *seen, kept_o, squares)
        _scan(recipe, x, (kept[0][:, i], kept[1][:, i]), results, span, False)
        around = (x.lr, x.inverse, x.carry)
        read_backward[(b * count,)](
            x.q, x.k, x.v, x.gate, *around, x.pairs, x.slot, d_out, *seen, kept_o, squares,
            d.q, d_k, d.carry, d.slot, d.pairs, *wide, d_u2, d_rates, scratch, *span,
            **sizes, **recipe.of("BIAS", "P", "ACT", "NORM", "RESIDUAL", "EPS"), num_warps=8, num_stages=1,
        )  # fmt: skip
        sums, norms, _, tickets = _exchange(x, sizes, 4)
        reverse[(b * tiles,)](
            x.q, x.k, x.v, x.gate, *around, x.slot, x.mix, x.into, d_out, *seen, kept_o, squares, *wide, d_u2, d_rates,
            d_w1, d_w2, d_k, d.v, d.gate, d.lr, d.inverse, d.into, mix_parts, k_parts, sums, norms, tickets, *span,
            **sizes, LIMIT=recipe.limit, **recipe.of(), num_warps=8, num_stages=1,
        )  # fmt: skip
        stretch = slice(first * c, (first + count) * c)
        d_k[:, stretch] += k_parts[: b * tiles * count * c * sizes["I"]].view(b, tiles, count * c, -1).sum(1)
        mixes.append(mix_parts.sum(1))
    d = d._replace(mix=torch.cat(mixes[::-1], 1), k=d_k.to(dtype))
    return list(d)

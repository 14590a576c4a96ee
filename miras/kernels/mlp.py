"""The perceptron of two matrices on Triton kernels: one forward scan; backward in groups of chunks from kept weights.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from miras.kernels import mlp_bias as bias
from miras.kernels import mlp_parts as parts
from miras.kernels.mlp_read import read
from miras.kernels.mlp_read_backward import read_backward
from miras.kernels.mlp_reverse import reverse, write_backward
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

FORWARD = ("BIAS", "P", "ACT", "NORM", "RESIDUAL", "EPS")
WARPS = {
    name: {"num_warps": 8, "num_stages": 1} for name in ("scan", "read", "read_backward", "reverse", "write_backward")
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
        answer, out, kept = _forward(recipe, x, any(ctx.needs_input_grad))
        ctx.save_for_backward(*x, out, *kept)
        ctx.recipe, ctx.count = recipe, len(x)
        return answer, kept[0][:, -1], kept[1][:, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_answer: Tensor, d_w1: Tensor, d_w2: Tensor) -> tuple[Tensor | None, ...]:
        x, (out, *kept) = Given(*ctx.saved_tensors[: ctx.count]), ctx.saved_tensors[ctx.count :]
        return None, *_backward(ctx.recipe, x, out, kept, (d_answer.contiguous(), d_w1, d_w2))


def _group(recipe: Recipe, x: Given) -> int:
    """Chunks whose weights are kept at a time: enough programs for the parallel kernels, little memory."""
    return min(x.carry.shape[1], recipe.group or max(8, 1024 // x.q.shape[0]))


def _room(x: Given, sizes: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what tiles tell each other: sums over the hidden width and over rows; and tickets."""
    tiles, b, c = sizes["F"] // sizes["BF"], x.q.shape[0], sizes["C"]
    sums, rows = x.w1.new_empty(b, 2, tiles, c, sizes["O"]), x.w1.new_empty(b, 2, tiles, 2, c)
    return sums, rows, torch.zeros(1 + b, dtype=torch.int32, device=x.q.device)


class Seen(NamedTuple):
    """What the scan leaves of every chunk of a group, ``[b, group, ...]``."""

    w1: Tensor  # [.., J, I, F]: the stacks before the chunk
    w2: Tensor  # [.., J, O, F]: transposed
    o: Tensor  # [.., C, O]: the answers to its keys
    squares: Tensor  # [.., 2, C]: of h and of u1

    @staticmethod
    def room(x: Given, group: int, chunk: int) -> Seen:
        b, j, i, f = x.w1.shape
        o, half = x.v.shape[-1], x.q.new_empty
        return Seen(
            half(b, group, j, i, f),
            half(b, group, j, o, f),
            x.w1.new_empty(b, group, chunk, o),
            x.w1.new_empty(b, group, 2, chunk),
        )


Span = tuple[int, int, int]
"""First chunk, chunks at hand, chunks of the sequence."""


def _scan(recipe: Recipe, x: Given, w: list[Tensor], ends: list[Tensor] | None, seen: Seen, span: Span) -> None:
    sizes = x.sizes(recipe)
    after = ends or [None, None]
    scan[(x.q.shape[0] * sizes["F"] // sizes["BF"],)](
        x.k, x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *after, w[0].stride(0), w[1].stride(0), *seen,
        *_room(x, sizes), *span, **sizes, **recipe.of(*FORWARD), **WARPS["scan"],
    )  # fmt: skip


def _forward(recipe: Recipe, x: Given, train: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Answers, the same before norm and residual, and the stacks before every group and at the end."""
    n, group = x.carry.shape[1], _group(recipe, x)
    answer = torch.empty_like(x.v)
    out = torch.empty_like(x.v, dtype=torch.float32) if train and recipe.norm else None
    kept = [w.new_empty(w.shape[0], -(-n // group) + 1, *w.shape[1:]) for w in (x.w1, x.w2)]
    for start, first in zip(kept, (x.w1, x.w2), strict=True):
        start[:, 0] = first
    sizes, seen = x.sizes(recipe), Seen.room(x, group, recipe.chunk)
    for i in range(kept[0].shape[1] - 1):
        span = i * group, min(group, n - i * group), n
        _scan(recipe, x, [w[:, i] for w in kept], [w[:, i + 1] for w in kept], seen, span)
        read[(x.q.shape[0] * span[1],)](
            x.q, x.k, x.v, x.gate, x.lr, x.inverse, x.carry, x.pairs, x.slot, *seen, out, answer, *span,
            **sizes, **recipe.of(*FORWARD), **WARPS["read"],
        )  # fmt: skip
    return answer, out, kept


def _backward(
    recipe: Recipe, x: Given, out: Tensor | None, kept: list[Tensor], given: tuple[Tensor, Tensor, Tensor]
) -> list[Tensor | None]:
    """Gradients of the given tensors: group by group from the last, the forward scan again, then everything else."""
    sizes, (b, n), c = x.sizes(recipe), x.carry.shape[:2], recipe.chunk
    d_answer, *d_w = given
    d_w = [w.clone(memory_format=torch.contiguous_format) for w in d_w]
    d = Given(*(t if t is None else torch.empty_like(t) for t in x))._replace(w1=d_w[0], w2=d_w[1])
    d_k = torch.empty_like(x.k, dtype=torch.float32)
    d_out = torch.empty_like(x.v)
    group = _group(recipe, x)
    seen = Seen.room(x, group, c)
    h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_z = (x.q.new_empty(b, group, c, sizes["F"]) for _ in range(9))
    late = [torch.empty_like(seen.w1), torch.empty_like(seen.w2)]
    d_u2, d_u2_all, d_rates = torch.empty_like(seen.o), torch.empty_like(seen.o), torch.empty_like(seen.squares)
    wide = [h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_u2, d_rates]
    scratch = x.q.new_empty(b, group, 2, c, c)
    for i in reversed(range(kept[0].shape[1] - 1)):
        span = i * group, min(group, n - i * group), n
        _scan(recipe, x, [w[:, i] for w in kept], None, seen, span)
        read_backward[(b * span[1],)](
            x.q, x.k, x.v, x.gate, x.lr, x.inverse, x.carry, x.pairs, x.slot, out, d_answer, *seen,
            d.q, d_k, d.carry, d.slot, d.pairs, d_out, *wide, scratch, *span,
            **sizes, **recipe.of(*FORWARD), **WARPS["read_backward"],
        )  # fmt: skip
        reverse[(b * sizes["F"] // sizes["BF"],)](
            x.q, x.k, x.v, x.gate, x.lr, x.inverse, x.carry, x.slot, x.mix, x.into, d_out, *seen[1:], *wide, *d_w,
            *late, d_z, d_u2_all, *_room(x, sizes), *span,
            **sizes, LIMIT=recipe.limit, **recipe.of(), **WARPS["reverse"],
        )  # fmt: skip
        write_backward[(b * span[1],)](
            x.k, x.v, x.gate, x.lr, x.inverse, x.into, *seen, h, u1, d_rates, *late, d_z, d_u2_all,
            d_k, d.v, d.gate, d.lr, d.inverse, d.mix, d.into, *span,
            **sizes, **recipe.of(), **WARPS["write_backward"],
        )  # fmt: skip
    return list(d._replace(k=d_k.to(x.k.dtype)))

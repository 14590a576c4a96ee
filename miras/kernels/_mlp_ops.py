"""The perceptron of two matrices as two operators that compilers see as one node each.

Forward scans the chunks and answers their queries group by group, and keeps the weights before every group. Backward takes
the groups from the last to the first: the scan again, the reads backward, the writes backward in sequence, the rest.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.architectures import MLP
from miras.biases import AttentionalBias
from miras.engine.weights import LIMIT
from miras.kernels import _mlp_parts as parts
from miras.kernels import residuals
from miras.kernels._mlp_read import read
from miras.kernels._mlp_read_backward import query_backward, read_backward
from miras.kernels._mlp_reverse import reverse
from miras.kernels._mlp_scan import scan
from miras.kernels._mlp_write_backward import write_backward

PROGRAMS = 1024
"""Chunks of all heads whose weights are kept at a time: enough for the parallel kernels, little memory."""

TILE = 64
"""Hidden width of a program; half of it for float32, whose products take no tensor cores."""

LAUNCH = {
    "scan": {"num_warps": 4, "num_stages": 1},
    "read": {"num_warps": 4, "num_stages": 2},
    "read_backward": {"num_warps": 4, "num_stages": 1},
    "query_backward": {"num_warps": 4, "num_stages": 2},
    "reverse": {"num_warps": 4, "num_stages": 1},
    "write_backward": {"num_warps": 4, "num_stages": 2},
}
"""Measured on an H100 with heads of 64 and chunks of 64. Kernels whose tiles wait for each other must not load ahead."""


class Recipe(NamedTuple):
    """What is not a tensor."""

    architecture: MLP
    bias: str
    chunk: int


_remembered: dict[str, Recipe] = {}


@torch.compiler.assume_constant_result
def remember(architecture: MLP, bias: AttentionalBias, chunk: int) -> str:
    """A string that stands for the recipe in the arguments of an operator."""
    recipe = Recipe(architecture, residuals.remember(bias), chunk)
    _remembered[repr(recipe)] = recipe
    return repr(recipe)


def _tile(f: int, most: int, dtype: torch.dtype) -> int:
    most = min(most, TILE // 2) if dtype == torch.float32 else most
    return next(tile for tile in (64, 32, 16) if tile <= most and f % tile == 0)


class Given(NamedTuple):
    """The tensors of `miras.engine.fused`, contiguous."""

    q: Tensor  # [b, T, I]
    k: Tensor  # [b, T, I]
    v: Tensor  # [b, T, O]
    lr: Tensor  # [b, T]
    inverse: Tensor | None  # [b, T]
    rows: Tensor  # [b, N, J, C]: what readers multiply memory and slot with
    pairs: Tensor  # [b, N, C, C]
    into: Tensor  # [b, N, J, C]
    mix: Tensor  # [b, N, J, J]
    w1: Tensor  # [b, J, I, F]
    w2: Tensor  # [b, J, F, O]
    gate: Tensor | None  # [b, T, 1] or [b, T, O]

    def tiles(self, kernel: Any) -> int:
        """Tiles of the hidden width."""
        return self.w1.shape[-1] // self._tile(kernel)

    def _tile(self, kernel: Any) -> int:
        return _tile(self.w1.shape[-1], LAUNCH[kernel.__name__].get("BF", TILE), self.q.dtype)

    def launch(self, how: Recipe, kernel: Any) -> dict[str, Any]:
        """The compile-time arguments of a kernel, of those it takes."""
        found, architecture = residuals.recall(how.bias), how.architecture
        f, c, own = self.w1.shape[-1], self.rows.shape[-1], LAUNCH[kernel.__name__]
        every = {
            "C": c,
            "I": self.q.shape[-1],
            "O": self.v.shape[-1],
            "F": f,
            "BF": self._tile(kernel),
            "ROWS": 1 << (-(-c // self.tiles(kernel)) - 1).bit_length(),
            "SLOT": self.rows.shape[2] > 1,
            "BOUND": self.inverse is not None,
            "GATE": 0 if self.gate is None else 1 if self.gate.shape[-1] == 1 else 2,
            "LIMIT": LIMIT,
            "BIAS": found.residual,
            "VJP": found.vjp,
            "P": found.constants,
            "ACT": getattr(parts, architecture.activation),
            "NORM": architecture.norm,
            "RESIDUAL": architecture.residual,
            "EPS": architecture.eps,
        }
        return {n: x for n, x in every.items() if n in kernel.arg_names} | {n: x for n, x in own.items() if n != "BF"}

    def groups(self) -> list[tuple[int, int, int]]:
        """First chunk, chunks, and chunks of the sequence, of every group."""
        b, n = self.rows.shape[:2]
        size = min(n, max(8, PROGRAMS // b))
        return [(first, min(size, n - first), n) for first in range(0, n, size)]

    def room(self, kernel: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Room for what tiles tell each other: sums over the hidden width and over rows; and tickets."""
        b, c, tiles = self.q.shape[0], self.rows.shape[-1], self.tiles(kernel)
        sums, rows = self.w1.new_empty(b, tiles, c, self.v.shape[-1]), self.w1.new_empty(b, 2, tiles, c)
        return sums, rows, torch.zeros((1 + b) * parts.LINE.value, dtype=torch.int32, device=self.q.device)


class Seen(NamedTuple):
    """What the scan leaves of every chunk of a group, ``[b, group, ...]``."""

    w1: Tensor  # [.., J, I, F]: the stacks before the chunk
    w2: Tensor  # [.., J, O, F]: transposed
    o: Tensor  # [.., C, O]: the answers to its keys
    u2: Tensor  # [.., C, O]: the errors there
    squares: Tensor  # [.., 5, C]: squared norms of h, u1 and u2; rates of both matrices

    @staticmethod
    def of(x: Given) -> Seen:
        (b, j, i, f), o, c, group = x.w1.shape, x.v.shape[-1], x.rows.shape[-1], x.groups()[0][1]
        narrow, wide = x.q.new_empty, x.w1.new_empty
        stacks = narrow(b, group, j, i, f), narrow(b, group, j, o, f)
        return Seen(*stacks, wide(b, group, c, o), narrow(b, group, c, o), wide(b, group, 5, c))


def _scan(
    x: Given, how: Recipe, w: list[Tensor], ends: list[Tensor | None], seen: Seen, group: tuple[int, int, int]
) -> None:
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    scan[(x.q.shape[0] * x.tiles(scan),)](
        x.k, x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *ends, *strides, *seen, *x.room(scan), *group,
        **x.launch(how, scan),
    )  # fmt: skip


@torch.library.custom_op("miras::perceptron", mutates_args=())
def perceptron(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    w1: Tensor,
    w2: Tensor,
    gate: Tensor | None,
    recipe: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chunks of a perceptron; the tensors are those of `Given`.

    Args:
        recipe: from `remember`.
        keep: whether backward will follow.

    Returns:
        Answers ``[b, T, O]``; for backward, the same before the norm and the stacks before every group, second
        matrices transposed; stacks at the end.
    """
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    how = _remembered[recipe]
    groups = x.groups()
    answer = torch.empty_like(v)
    out = w1.new_empty(v.shape if keep and how.architecture.norm else 0)
    starts = w1, w2.mT
    kept = [w.new_empty(w.shape[0], len(groups), *w.shape[1:]) for w in starts]
    ends = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in starts]
    for stacks, start in zip(kept, starts, strict=True):
        stacks[:, 0] = start
    seen = Seen.of(x)
    for i, group in enumerate(groups):
        after = ends if i + 1 == len(groups) else [w[:, i + 1] for w in kept]
        _scan(x, how, [w[:, i] for w in kept], list(after), seen, group)
        read[(len(q) * group[1],)](
            q, k, lr, rows, pairs, seen.w1, seen.w2, seen.u2, seen.squares, out if len(out) else None, answer,
            *group, **x.launch(how, read),
        )  # fmt: skip
    return answer, out, *kept, ends[0], ends[1].mT.contiguous()


@perceptron.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    w1: Tensor,
    w2: Tensor,
    gate: Tensor | None,
    recipe: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    out = w1.new_empty(v.shape if keep and _remembered[recipe].architecture.norm else 0)
    kept = [w.new_empty(w.shape[0], len(x.groups()), *w.shape[1:]) for w in (w1, w2.mT)]
    return torch.empty_like(v), out, *kept, torch.empty_like(w1), torch.empty_like(w2)


@torch.library.custom_op("miras::perceptron_backward", mutates_args=())
def perceptron_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    w1: Tensor,
    w2: Tensor,
    gate: Tensor | None,
    out: Tensor,
    kept1: Tensor,
    kept2: Tensor,
    d_answer: Tensor,
    d_end1: Tensor,
    d_end2: Tensor,
    recipe: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `perceptron` in their order; an empty tensor for one that is None."""
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    how = _remembered[recipe]
    d_answer, before, b = d_answer.contiguous(), out if len(out) else None, len(q)
    d_w = [w.clone(memory_format=torch.contiguous_format) for w in (d_end1, d_end2.mT)]
    d = Given(*(t if t is None else torch.empty_like(t) for t in x))
    near, d_out, seen = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v), Seen.of(x)
    h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_z = (q.new_empty(*seen.o.shape[:3], w1.shape[-1]) for _ in range(9))
    late, d_o = [torch.empty_like(seen.w1), torch.empty_like(seen.w2)], torch.empty_like(seen.u2)
    d_u2, d_rates = torch.empty_like(seen.o), lr.new_empty(*seen.o.shape[:2], 2, pairs.shape[-1])
    sent = q.new_empty(*seen.o.shape[:2], 2 * w1.shape[1], pairs.shape[-1], max(q.shape[-1], v.shape[-1]))
    wide = [h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_u2, d_rates, sent]
    scratch = q.new_empty(*seen.o.shape[:2], 4, *pairs.shape[-2:])
    for i, group in reversed(list(enumerate(x.groups()))):
        _scan(x, how, [kept1[:, i], kept2[:, i]], [None, None], seen, group)
        read_backward[(b * group[1],)](
            q, k, lr, rows, pairs, before, d_answer, seen.w1, seen.w2, seen.u2, seen.squares,
            d.rows, d.pairs, d_out, *wide, scratch, *group, **x.launch(how, read_backward),
        )  # fmt: skip
        query_backward[(b * group[1],)](
            q, k, lr, rows, pairs, d_answer, seen.w1, seen.squares, u1, d_zr,
            d.q, near, d.rows, d.pairs, d_rates, scratch, *group, **x.launch(how, query_backward),
        )  # fmt: skip
        reverse[(b * x.tiles(reverse),)](
            k, v, gate, lr, inverse, mix, into, *seen[1:], *wide, *d_w, *late, d_z, d_o,
            near, d.v, d.gate, *x.room(reverse), *group, **x.launch(how, reverse),
        )  # fmt: skip
        write_backward[(b * group[1],)](
            k, lr, inverse, into, seen.w1, seen.w2, seen.u2, seen.squares, h, u1, d_rates, *late, d_z,
            d.k, near, d.lr, d.inverse, d.mix, d.into, *group, **x.launch(how, write_backward),
        )  # fmt: skip
    d = d._replace(w1=d_w[0], w2=d_w[1].mT.contiguous())
    return [lr.new_empty(0) if t is None else t for t in d]


@perceptron_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    w1: Tensor,
    w2: Tensor,
    gate: Tensor | None,
    out: Tensor,
    kept1: Tensor,
    kept2: Tensor,
    d_answer: Tensor,
    d_end1: Tensor,
    d_end2: Tensor,
    recipe: str,
) -> list[Tensor]:
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    return [lr.new_empty(0) if t is None else torch.empty_like(t) for t in x]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, recipe, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:4])
    ctx.recipe = recipe
    ctx.present = [t is not None for t in tensors]
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, d_answer: Tensor, *d: Tensor) -> tuple[Tensor | None, ...]:
    grads = perceptron_backward(*ctx.saved_tensors, d_answer, *d[-2:], ctx.recipe)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


perceptron.register_autograd(_backward, setup_context=_setup)

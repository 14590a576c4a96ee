"""The gated perceptron as two operators that compilers see as one node each; see `miras.kernels._mlp.ops`.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels._gated.launch import Given, Seen
from miras.kernels._gated.read import read
from miras.kernels._gated.read_backward import query_backward, read_backward
from miras.kernels._gated.reverse import reverse
from miras.kernels._gated.scan import scan
from miras.kernels._gated.write_backward import write_backward
from miras.kernels._mlp.launch import Recipe, launch, recall
from miras.kernels.operator import Differentiable, Operator


def _scan(
    x: Given, how: Recipe, w: list[Tensor], ends: list[Tensor | None], seen: Seen, group: tuple[int, int, int]
) -> None:
    """From stacks, whose ends may not be asked for."""
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    launch(
        scan, len(x.q) * x.tiles(scan), how, x,
        x.k, x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *ends, *strides, *seen, *x.meetings(scan), *group,
    )  # fmt: skip


def _perceptron(
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
    """Chunks of a gated perceptron; the tensors are those of `Given`.

    Args:
        recipe: from `miras.kernels._mlp.launch.key`.
        keep: whether backward will follow.

    Returns:
        Answers ``[b, T, O]``; for backward, the same before the norm, the stacks before every group, down transposed; the
        stacks at the end.
    """
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    how = recall(recipe)
    groups = x.groups()
    answer = torch.empty_like(v)
    out = w1.new_empty(v.shape if keep and how.norm else 0)
    starts = w1, w2.mT
    kept = [w.new_empty(w.shape[0], len(groups), *w.shape[1:]) for w in starts]
    ends = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in starts]
    for stacks, start in zip(kept, starts, strict=True):
        stacks[:, 0] = start
    seen = Seen.of(x)
    for i, group in enumerate(groups):
        after = ends if i + 1 == len(groups) else [w[:, i + 1] for w in kept]
        _scan(x, how, [w[:, i] for w in kept], list(after), seen, group)
        launch(
            read, len(q) * group[1], how, x,
            q, k, lr, rows, pairs, seen.w1, seen.w2, seen.u2, seen.rates, out if len(out) else None, answer, *group,
        )  # fmt: skip
    return answer, out, kept[0], kept[1], ends[0], ends[1].mT.contiguous()


def _blank(*arguments: Any) -> tuple[Any, ...]:
    *tensors, recipe, keep = arguments
    x = Given(*tensors)
    out = x.w1.new_empty(x.v.shape if keep and recall(recipe).norm else 0)
    kept = [w.new_empty(w.shape[0], len(x.groups()), *w.shape[1:]) for w in (x.w1, x.w2.mT)]
    return torch.empty_like(x.v), out, *kept, torch.empty_like(x.w1), torch.empty_like(x.w2)


def _perceptron_backward(
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
    """Gradients of the tensor arguments of `gated_perceptron` in their order; an empty tensor for one that is None."""
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate)
    how = recall(recipe)
    d_answer, before, b = d_answer.contiguous(), out if len(out) else None, len(q)
    d_w = [w.clone(memory_format=torch.contiguous_format) for w in (d_end1, d_end2.mT)]
    d = Given(*(t if t is None else torch.empty_like(t) for t in x))  # pyright: ignore[reportArgumentType]
    near, d_out = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v)
    seen = Seen.of(x)
    group, c, f = seen.o.shape[1], pairs.shape[-1], w1.shape[-1]
    h, hr, d_h = (q.new_empty(b, group, c, f) for _ in range(3))
    bend, turn, u1, d_u1, d_zr, d_z = (q.new_empty(b, group, 2, c, f) for _ in range(6))
    late, d_o = [torch.empty_like(seen.w1), torch.empty_like(seen.w2)], torch.empty_like(seen.u2)
    d_u2, d_rates = torch.empty_like(seen.o), torch.empty_like(seen.rates)
    sent = q.new_empty(b, group, 2 * w1.shape[1], c, max(q.shape[-1], v.shape[-1]))
    wide = [h, hr, d_h, bend, turn, u1, d_u1, d_zr, d_u2, d_rates, sent]
    scratch = q.new_empty(b, group, 4, c, c)
    for i, chunks in reversed(list(enumerate(x.groups()))):
        _scan(x, how, [kept1[:, i], kept2[:, i]], [None, None], seen, chunks)
        launch(
            read_backward, b * chunks[1], how, x,
            q, k, lr, rows, pairs, before, d_answer, seen.w1, seen.w2, seen.u2, seen.rates,
            d.rows, d.pairs, d_out, *wide, scratch, *chunks,
        )  # fmt: skip
        launch(
            query_backward, b * chunks[1], how, x,
            q, k, lr, rows, pairs, d_answer, seen.w1, seen.rates, u1, d_zr,
            d.q, near, d.rows, d.pairs, d_rates, scratch, *chunks,
        )  # fmt: skip
        launch(
            reverse, b * x.tiles(reverse), how, x,
            k, v, gate, lr, inverse, mix, into, *seen[1:], *wide, *d_w, *late, d_z, d_o,
            near, d.v, d.gate, *x.meetings(reverse), *chunks,
        )  # fmt: skip
        launch(
            write_backward, b * chunks[1], how, x,
            k, lr, inverse, into, *seen[:2], *seen[3:], h, u1, d_rates, *late, d_z,
            d.k, near, d.lr, d.inverse, d.mix, d.into, *chunks,
        )  # fmt: skip
    d = d._replace(w1=d_w[0], w2=d_w[1].mT.contiguous())
    return [lr.new_empty(0) if t is None else t for t in d[:12]]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    x = arguments[:12]
    return [x[3].new_empty(0) if t is None else torch.empty_like(t) for t in x]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, recipe, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:4])
    ctx.recipe = recipe
    ctx.present = [t is not None for t in tensors]


def _backward(pull: Any, ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, *given, ctx.recipe)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


gated_perceptron_backward = Operator("gated_perceptron_backward", _perceptron_backward, _blank_gradients)
gated_perceptron = Differentiable(
    "gated_perceptron", _perceptron, _blank, _setup, _backward, gated_perceptron_backward, answers=(0, 4, 5)
)

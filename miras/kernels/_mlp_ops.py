"""The perceptron of two matrices as two operators that compilers see as one node each.

Forward scans the chunks and answers their queries group by group, and keeps the weights before every group. Backward takes
the groups from the last to the first: the scan again, the reads backward, the writes backward in sequence, the rest.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels._mlp_launch import Given, Linked, Recipe, Seen, launch, recall
from miras.kernels._mlp_read import read
from miras.kernels._mlp_read_backward import query_backward, read_backward
from miras.kernels._mlp_reverse import reverse
from miras.kernels._mlp_scan import scan
from miras.kernels._mlp_write_backward import write_backward
from miras.kernels.operator import Differentiable, Operator


def _scan(
    x: Given,
    how: Recipe,
    w: list[Tensor],
    ends: list[Tensor | None],
    biases: tuple[Tensor | None, Tensor | None],
    seen: Seen,
    linked: Linked,
    group: tuple[int, int, int],
) -> Tensor:
    """From stacks and fast biases, whose ends may not be asked for.

    Returns:
        What `miras.kernels._mlp_parts.load_rates` of a reader takes.
    """
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    launch(
        scan, x.q.shape[0] * x.tiles(scan), how, x,
        x.k, x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *ends, *strides, *biases, *seen, *linked, *x.room(scan, how), *group,
    )  # fmt: skip
    return seen.squares if linked.rates is None else linked.rates


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
    biases: Tensor | None,
    recipe: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chunks of a perceptron; the tensors are those of `Given`.

    Args:
        recipe: from `miras.kernels._mlp_launch.key`.
        keep: whether backward will follow.

    Returns:
        Answers ``[b, T, O]``; for backward, the same before the norm and the stacks before every group, second
        matrices transposed, and the fast biases ``[groups, b, J, F + O]``; stacks and biases at the end.
    """
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate, biases)
    how = recall(recipe)
    groups = x.groups()
    answer = torch.empty_like(v)
    out = w1.new_empty(v.shape if keep and how.norm else 0)
    starts = w1, w2.mT
    kept = [w.new_empty(w.shape[0], len(groups), *w.shape[1:]) for w in starts]
    ends = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in starts]
    for stacks, start in zip(kept, starts, strict=True):
        stacks[:, 0] = start
    kept_b, end_b = _room_of_biases(x)
    line = [None] * (len(groups) + 1) if biases is None else [*kept_b, end_b]
    if biases is not None:
        kept_b[0] = biases
    seen = Seen.of(x)
    linked = Linked.of(how, seen)
    for i, group in enumerate(groups):
        after = ends if i + 1 == len(groups) else [w[:, i + 1] for w in kept]
        rates = _scan(x, how, [w[:, i] for w in kept], list(after), (line[i], line[i + 1]), seen, linked, group)
        launch(
            read, len(q) * group[1], how, x,
            q, k, lr, rows, pairs, seen.w1, seen.w2, seen.u2, rates, seen.biases, seen.bias_rates,
            out if len(out) else None, answer, *group,
        )  # fmt: skip
    return answer, out, kept[0], kept[1], kept_b, ends[0], ends[1].mT.contiguous(), end_b


def _room_of_biases(x: Given) -> tuple[Tensor, Tensor]:
    """Before every group, and at the end; nothing where there are none."""
    shape = (0,) if x.biases is None else x.biases.shape
    return x.w1.new_empty(len(x.groups()), *shape), x.w1.new_empty(shape)


def _blank(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, recipe, keep = arguments
    x = Given(*tensors)
    out = x.w1.new_empty(x.v.shape if keep and recall(recipe).norm else 0)
    kept = [w.new_empty(w.shape[0], len(x.groups()), *w.shape[1:]) for w in (x.w1, x.w2.mT)]
    kept_b, end_b = _room_of_biases(x)
    return torch.empty_like(x.v), out, *kept, kept_b, torch.empty_like(x.w1), torch.empty_like(x.w2), end_b


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
    biases: Tensor | None,
    out: Tensor,
    kept1: Tensor,
    kept2: Tensor,
    kept_b: Tensor,
    d_answer: Tensor,
    d_end1: Tensor,
    d_end2: Tensor,
    d_end_b: Tensor,
    recipe: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `perceptron` in their order; an empty tensor for one that is None."""
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate, biases)
    how = recall(recipe)
    d_answer, before, b = d_answer.contiguous(), out if len(out) else None, len(q)
    d_w = [w.clone(memory_format=torch.contiguous_format) for w in (d_end1, d_end2.mT)]
    d = Given(*(t if t is None else torch.empty_like(t) for t in x))  # pyright: ignore[reportArgumentType]
    near, d_out, seen = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v), Seen.of(x)
    h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_z = (q.new_empty(*seen.o.shape[:3], w1.shape[-1]) for _ in range(9))
    late, d_o = [torch.empty_like(seen.w1), torch.empty_like(seen.w2)], torch.empty_like(seen.u2)
    d_b = None if biases is None else d_end_b.clone(memory_format=torch.contiguous_format)
    late_b = None if seen.biases is None else torch.empty_like(seen.biases)
    d_u2, d_rates = torch.empty_like(seen.o), lr.new_empty(*seen.o.shape[:2], 2, pairs.shape[-1])
    sent = q.new_empty(*seen.o.shape[:2], 2 * w1.shape[1], pairs.shape[-1], max(q.shape[-1], v.shape[-1]))
    linked = Linked.of(how, seen)
    wide = [h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_u2, d_rates, sent]
    scratch = q.new_empty(*seen.o.shape[:2], 4, *pairs.shape[-2:])
    for i, group in reversed(list(enumerate(x.groups()))):
        before_b = None if biases is None else kept_b[i]
        rates = _scan(x, how, [kept1[:, i], kept2[:, i]], [None, None], (before_b, None), seen, linked, group)
        launch(
            read_backward, b * group[1], how, x,
            q, k, lr, rows, pairs, before, d_answer, seen.w1, seen.w2, seen.u2, rates,
            seen.biases, seen.bias_rates, d.rows, d.pairs, d_out, *wide, scratch, *group,
        )  # fmt: skip
        launch(
            query_backward, b * group[1], how, x,
            q, k, lr, rows, pairs, d_answer, seen.w1, rates, u1, d_zr, seen.biases, seen.bias_rates,
            d.q, near, d.rows, d.pairs, d_rates, scratch, *group,
        )  # fmt: skip
        launch(
            reverse, b * x.tiles(reverse), how, x,
            k, v, gate, lr, inverse, mix, into, *seen[1:5], *wide, *d_w, *late, d_z, d_o,
            near, d.v, d.gate, seen.w1 if how.link.kind else None, linked.sizes, None if d_b is None else rows, d_b, late_b,
            seen.bias_rates, *x.room(reverse, how), *group,
        )  # fmt: skip
        launch(
            write_backward, b * group[1], how, x,
            k, lr, inverse, into, seen.w1, seen.w2, seen.u2, seen.squares, h, u1, d_rates, *late, d_z,
            d.k, near, d.lr, d.inverse, d.mix, d.into, linked.sizes, seen.biases, late_b, seen.bias_rates, *group,
        )  # fmt: skip
    d = d._replace(w1=d_w[0], w2=d_w[1].mT.contiguous(), biases=d_b)
    return [lr.new_empty(0) if t is None else t for t in d]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    x = Given(*arguments[:13])
    return [x.lr.new_empty(0) if t is None else torch.empty_like(t) for t in x]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, recipe, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:5])
    ctx.recipe = recipe
    ctx.present = [t is not None for t in tensors]


def _backward(pull: Any, ctx: Any, d_answer: Tensor, *d: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, d_answer, *d[-3:], ctx.recipe)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


perceptron_backward = Operator("perceptron_backward", _perceptron_backward, _blank_gradients)
perceptron = Differentiable("perceptron", _perceptron, _blank, _setup, _backward, perceptron_backward)

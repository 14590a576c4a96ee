"""The perceptron of two matrices as two operators that compilers see as one node each.

Forward scans the chunks and answers their queries group by group, and keeps the weights before every group. Backward takes
the groups from the last to the first: the scan again, the reads backward, the writes backward in sequence, the rest.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import clusters
from miras.kernels._mlp import answers, cluster
from miras.kernels._mlp.launch import Given, Linked, Recipe, Seen, launch, recall
from miras.kernels._mlp.read import read
from miras.kernels._mlp.read_backward import query_backward, read_backward
from miras.kernels._mlp.reverse import reverse
from miras.kernels._mlp.scan import scan
from miras.kernels._mlp.write_backward import write_backward
from miras.kernels.operator import Differentiable, Operator


def _scan(
    x: Given,
    how: Recipe,
    w: list[Tensor],
    ends: list[Tensor | None],
    vectors: list[Tensor | None],
    seen: Seen,
    linked: Linked,
    group: tuple[int, int, int],
) -> None:
    """From stacks, and from fast biases and gains with their ends behind them; ends may not be asked for."""
    if how.clusters and len(x.q) >= clusters.CROWD:
        return cluster.scan(x, how, w, ends, seen, group)
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    return launch(
        scan, x.q.shape[0] * x.tiles(scan), how, x,
        x.k, x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *ends, *strides, *vectors, *seen, *linked, *x.room(scan, how), *group,
    )  # fmt: skip


def _room_of_a_group(x: Given, how: Recipe) -> tuple[Seen, Linked]:
    seen = Seen.of(x)
    return seen, Linked.of(how, seen)


def _rates(seen: Seen, linked: Linked) -> Tensor:
    """What `miras.kernels._mlp.parts.load_rates` of a reader takes."""
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
    gains: Tensor | None,
    recipe: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chunks of a perceptron; the tensors are those of `Given`.

    Args:
        recipe: from `miras.kernels._mlp.launch.key`.
        keep: whether backward will follow.

    Returns:
        Answers ``[b, T, O]``; for backward, the same before the norm and the stacks before every group, second
        matrices transposed, the fast biases ``[groups, b, J, F + O]`` and the gains; stacks, biases and gains at the end.
    """
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate, biases, gains)
    how = recall(recipe)
    before_norm = how if gains is None else how._replace(norm=False, residual=False)
    groups = x.groups()
    answer = torch.empty_like(v)
    out = w1.new_empty(_shape_of_out(x, how, keep))
    starts = w1, w2.mT
    kept = [w.new_empty(w.shape[0], len(groups), *w.shape[1:]) for w in starts]
    ends = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in starts]
    for stacks, start in zip(kept, starts, strict=True):
        stacks[:, 0] = start
    (kept_b, end_b), (kept_g, end_g) = _room(x, biases), _room(x, gains)
    along_b, along_g = _line(kept_b, end_b, biases), _line(kept_g, end_g, gains)
    seen, linked = _room_of_a_group(x, how)
    for i, group in enumerate(groups):
        after = ends if i + 1 == len(groups) else [w[:, i + 1] for w in kept]
        vectors = [*along_b[i : i + 2], *along_g[i : i + 2]]
        _scan(x, how, [w[:, i] for w in kept], list(after), vectors, seen, linked, group)
        if how.clusters:
            cluster.read(x, how, seen, out if len(out) else None, answer, group)
        else:
            launch(
                read, len(q) * group[1], before_norm, x,
                q, k, lr, rows, pairs, seen.w1, seen.w2, seen.u2, _rates(seen, linked), seen.biases, seen.bias_rates,
                *((out if len(out) else None, answer) if gains is None else (None, out)), *group,
            )  # fmt: skip
        if gains is not None:
            answers.read(x, how, out, answer, seen, answers.Span(*group))
    return answer, out, kept[0], kept[1], kept_b, kept_g, ends[0], ends[1].mT.contiguous(), end_b, end_g


def _shape_of_out(x: Given, how: Recipe, keep: bool) -> tuple[int, ...]:
    return tuple(x.v.shape) if how.norm and (keep or x.gains is not None) else (0,)


def _room(x: Given, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
    """For fast vectors before every group, and at the end; nothing where there are none."""
    shape = (0,) if vectors is None else vectors.shape
    return x.w1.new_empty(len(x.groups()), *shape), x.w1.new_empty(shape)


def _line(kept: Tensor, end: Tensor, vectors: Tensor | None) -> list[Tensor | None]:
    """That room from group to group, with the vectors at its beginning."""
    if vectors is None:
        return [None] * (len(kept) + 1)
    kept[0] = vectors
    return [*kept, end]


def _blank(*arguments: Any) -> tuple[Any, ...]:
    *tensors, recipe, keep = arguments
    x, how = Given(*tensors), recall(recipe)
    out = x.w1.new_empty(_shape_of_out(x, how, keep))
    kept = [w.new_empty(w.shape[0], len(x.groups()), *w.shape[1:]) for w in (x.w1, x.w2.mT)]
    (kept_b, end_b), (kept_g, end_g) = _room(x, x.biases), _room(x, x.gains)
    ends = [torch.empty_like(w) for w in (x.w1, x.w2)]
    return torch.empty_like(x.v), out, *kept, kept_b, kept_g, *ends, end_b, end_g


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
    gains: Tensor | None,
    out: Tensor,
    kept1: Tensor,
    kept2: Tensor,
    kept_b: Tensor,
    kept_g: Tensor,
    d_answer: Tensor,
    d_end1: Tensor,
    d_end2: Tensor,
    d_end_b: Tensor,
    d_end_g: Tensor,
    recipe: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `perceptron` in their order; an empty tensor for one that is None."""
    x = Given(q, k, v, lr, inverse, rows, pairs, into, mix, w1, w2, gate, biases, gains)
    how = recall(recipe)
    d_answer, before, b = d_answer.contiguous(), out if len(out) else None, len(q)
    d_w = [w.clone(memory_format=torch.contiguous_format) for w in (d_end1, d_end2.mT)]
    d = Given(*(t if t is None else torch.empty_like(t) for t in x))  # pyright: ignore[reportArgumentType]
    near = torch.empty_like(k, dtype=torch.float32)
    seen, linked = _room_of_a_group(x, how)
    h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_z = (q.new_empty(*seen.o.shape[:3], w1.shape[-1]) for _ in range(9))
    late, d_o = [torch.empty_like(seen.w1), torch.empty_like(seen.w2)], torch.empty_like(seen.u2)
    d_b = None if biases is None else d_end_b.clone(memory_format=torch.contiguous_format)
    late_b = None if seen.biases is None else torch.empty_like(seen.biases)
    d_g = None if gains is None else d_end_g.clone(memory_format=torch.contiguous_format)
    late_g, read_of_gains = answers.Late.of(seen), None
    d_normed = d_answer if gains is None else torch.empty_like(out)
    d_u2, d_rates = torch.empty_like(seen.o), lr.new_empty(*seen.o.shape[:2], 2, pairs.shape[-1])
    sent = q.new_empty(*seen.o.shape[:2], 2 * w1.shape[1], pairs.shape[-1], max(q.shape[-1], v.shape[-1]))
    wide = [h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_u2, d_rates, sent]
    d_out = scratch = None  # which clusters do without
    if not how.clusters:
        d_out, scratch = torch.empty_like(v), q.new_empty(*seen.o.shape[:2], 4, *pairs.shape[-2:])
    for i, group in reversed(list(enumerate(x.groups()))):
        before_b = None if biases is None else kept_b[i]
        vectors = [before_b, None, None if gains is None else kept_g[i], None]
        _scan(x, how, [kept1[:, i], kept2[:, i]], [None, None], vectors, seen, linked, group)
        if how.clusters:
            room = cluster.Room(wide, d_w, late, d_z, d_o, near)
            cluster.backward(x, how, before, d_answer, seen, room, d, group)
            continue
        rates = _rates(seen, linked)
        span = answers.Span(*group)
        if gains is not None:
            read_of_gains = answers.read_backward(x, how, out, d_answer, d_normed, seen, late_g, span)
        launch(
            read_backward, b * group[1], how, x,
            q, k, lr, rows, pairs, before, d_normed, seen.w1, seen.w2, seen.u2, rates,
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
            seen.bias_rates, seen.gains, late_g.seen, late_g.errors, d_g, late_g.gains, *x.room(reverse, how), *group,
        )  # fmt: skip
        launch(
            write_backward, b * group[1], how, x,
            k, lr, inverse, into, seen.w1, seen.w2, seen.u2, seen.squares, h, u1, d_rates, *late, d_z,
            d.k, near, d.lr, d.inverse, d.mix, d.into, linked.sizes, seen.biases, late_b, seen.bias_rates, *group,
        )  # fmt: skip
        if read_of_gains is not None:
            answers.write_backward(x, d, read_of_gains, seen, late_g, span)
    d = d._replace(w1=d_w[0], w2=d_w[1].mT.contiguous(), biases=d_b, gains=d_g)
    return [lr.new_empty(0) if t is None else t for t in d]


def _blank_gradients(*arguments: Any) -> list[Tensor]:
    x = Given(*arguments[:14])
    return [x.lr.new_empty(0) if t is None else torch.empty_like(t) for t in x]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, recipe, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:6])
    ctx.recipe = recipe
    ctx.present = [t is not None for t in tensors]


def _backward(pull: Any, ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
    grads = pull(*ctx.saved_tensors, *given, ctx.recipe)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


perceptron_backward = Operator("perceptron_backward", _perceptron_backward, _blank_gradients)
perceptron = Differentiable(
    "perceptron", _perceptron, _blank, _setup, _backward, perceptron_backward, answers=(0, *range(6, 10))
)

r"""Whole chunks of the two-matrix perceptron with forward and backward written out: the hot path of Titans and Yaad.

The same numbers as the factored path, which remains the definition of its derivatives beyond the first. Autograd
would record some six hundred small operations a chunk; here wide activations are touched a dozen times, sums are
accumulated by the matrix products, and what is cheap to form again (activations from pre-activations) is not kept.

Shapes: b batch times heads, T tokens, C tokens of a chunk, J = 1 + K memory and slots, I, F and O key, hidden and value
width. Per chunk: ``z = k W1``, ``h = act(z)``, ``o = h W2``; errors ``u2`` at ``o`` and ``u1`` at ``z``; the same with ``r`` for
what queries meet at their own token's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.architectures import ACTIVATIONS, MLP, layer_norm, layer_norm_tap
from miras.biases import AttentionalBias
from miras.engine.coefficients import coefficients
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.segment import bias_gates
from miras.engine.weights import LIMIT, Shapes
from miras.spec import MirasSpec
from miras.state import MemoryState

TINY = 1e-30
"""Under the root of gradient norms, as in `miras.engine.segment.weigh`."""


@dataclass(frozen=True)
class Recipe:
    """What is not a tensor."""

    architecture: MLP
    bias: AttentionalBias
    chunk: int


def available() -> bool:
    """Whether autograd is the plain one: compilers and ``torch.func`` trace the factored path instead."""
    return outside_functorch() and not torch.compiler.is_compiling()


def outside_functorch() -> bool:
    """Whether no transform of ``torch.func`` is at work."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    assert isinstance(spec.architecture, MLP)
    batch, heads, length = x.q.shape[:3]
    tile = (length // spec.chunk_size, spec.chunk_size)
    gates = {g: t.unflatten(2, tile) for g, t in algorithm_gates(spec, x).items()}
    c = coefficients(spec, gates, x.q[..., 0].unflatten(2, tile), 1)

    def flat(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.flatten(0, 1)

    stacks = [stack(state, n).flatten(0, 1) for n in ("w_1", "w_2")]
    lr, inverse = x.pair["lr"], x.pair.get("inverse_bound")
    tensors = [x.q, x.k, x.v, lr, inverse, c.carry, c.pairs, c.slots, c.end_mix, c.end_pairs]
    extra = [flat(g) for g in bias_gates(spec, x.pair).values()]
    recipe = Recipe(spec.architecture, spec.bias, spec.chunk_size)
    o, *ends = Chunks.apply(recipe, *map(flat, tensors), *stacks, *extra)
    if spec.architecture.norm:
        o = layer_norm(o, spec.architecture.eps)
    y = o.unflatten(0, (batch, heads))
    y = x.q + y if spec.architecture.residual else y
    stacks = {n: w.unflatten(0, (batch, heads)) for n, w in zip(("w_1", "w_2"), ends, strict=True)}
    memory = {n: w[:, :, 0] for n, w in stacks.items()}
    slots = {n: w[:, :, 1:] for n, w in stacks.items()} if state.slots else {}
    return y, state._replace(memory=memory, slots=slots, anchor=memory)


def stack(state: MemoryState, name: str) -> Tensor:
    """Memory and slots of one weight, ``[B, H, J, in, out]``."""
    memory = state.memory[name].unsqueeze(2)
    return torch.cat([memory, state.slots[name]], 2) if name in state.slots else memory


class Chunk(NamedTuple):
    """Inputs of one chunk, ``[b, C, ...]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    inverse: Tensor | None
    carry: Tensor
    pairs: Tensor
    slots: Tensor | None
    mix: Tensor
    into: Tensor
    gates: tuple[Tensor, ...]

    def rows(self) -> list[Tensor]:
        """What a reader multiplies memory and slots with, ``[b, C, 1]`` each."""
        slots = [] if self.slots is None else [-s.unsqueeze(-1) for s in self.slots.unbind(-1)]
        return [self.carry.unsqueeze(-1), *slots]


class Chunks(torch.autograd.Function):
    """Outputs before the norm, and the stacks after the last chunk, from the recipe and the tensors of `run`."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chunks, w1, w2 = _cut(recipe, tensors)
        out, kept, wide = [], [], []
        for x in chunks:
            kept += [w1, w2]
            o, saved, w1, w2 = _forward(recipe, x, w1, w2)
            out.append(o)
            wide += saved
        ctx.recipe, ctx.chunks = recipe, len(chunks)
        ctx.save_for_backward(*tensors, *kept, *wide)
        ctx.counts = len(tensors), len(kept)
        return torch.cat(out, 1), w1, w2

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_w1: Tensor, d_w2: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.counts
        saved = ctx.saved_tensors
        tensors, kept, wide = saved[:a], saved[a : a + b], saved[a + b :]
        many = any(map(torch._C._functorch.is_legacy_batchedtensor, (d_out, d_w1, d_w2)))  # pyright: ignore
        if torch.is_grad_enabled() or many:  # a derivative of the derivative, or several rows of a Jacobian at once
            with torch.enable_grad():
                return (None, *_again(ctx.recipe, tensors, (d_out, d_w1, d_w2)))
        chunks, _, _ = _cut(ctx.recipe, tensors)
        each = len(wide) // len(chunks)
        found: list[list[Tensor | None]] = []
        d_outs = d_out.split(ctx.recipe.chunk, 1)
        for i in reversed(range(len(chunks))):
            weights, record = kept[2 * i : 2 * i + 2], wide[each * i : each * (i + 1)]
            grads, d_w1, d_w2 = _backward(ctx.recipe, chunks[i], weights, record, d_outs[i], d_w1, d_w2)
            if chunks[i].inverse is not None:  # as `miras.engine.weights.limited`, where there is a step bound
                d_w1, d_w2 = d_w1.clamp(-LIMIT, LIMIT), d_w2.clamp(-LIMIT, LIMIT)
            found.append(grads)
        columns = list(zip(*reversed(found), strict=True))
        joined = [
            None if c[0] is None else torch.cat(c, 1) if i < 5 or i >= 10 else torch.stack(c, 1)
            for i, c in enumerate(columns)
        ]
        return (None, *joined[:10], d_w1, d_w2, *joined[10:])


def _cut(recipe: Recipe, tensors: tuple[Tensor, ...]) -> tuple[list[Chunk], Tensor, Tensor]:
    """The chunks and the stacked weights before the first."""
    n = recipe.chunk
    along = [t if t is None else t.split(n, 1) for t in (*tensors[:5], *tensors[12:])]
    across = [t if t is None else t.unbind(1) for t in tensors[5:10]]
    count = tensors[0].shape[1] // n

    def at(parts: Any, i: int) -> Any:
        return None if parts is None else parts[i]

    chunks = [
        Chunk._make([*(at(p, i) for p in (*along[:5], *across)), tuple(at(p, i) for p in along[5:])])
        for i in range(count)
    ]
    return chunks, tensors[10], tensors[11]


def _error(recipe: Recipe, x: Chunk, o: Tensor) -> Tensor:
    """The error at the output of the second matrix: norm, residual, bias, and back through the norm."""
    answer, pull = layer_norm_tap(o, recipe.architecture.eps) if recipe.architecture.norm else (o, None)
    if recipe.architecture.residual:
        answer = answer + x.k
    error = recipe.bias.residual(answer, x.v, **dict(zip(recipe.bias.gates, x.gates, strict=True)))
    return error if pull is None else pull(error)


def _scale(x: Chunk, keys: Tensor, errors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bounded learning rate of every pair, and what its derivative needs."""
    a, b = keys.square().sum(-1), errors.square().sum(-1)
    norm = (a * b + TINY).sqrt()
    if x.inverse is None:
        return x.lr, a, b, norm
    return x.lr / (1 + norm * x.lr * x.inverse), a, b, norm


def _forward(recipe: Recipe, x: Chunk, w1: Tensor, w2: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """One chunk: what queries get before the norm, what backward needs, and the stacks after it."""
    act = ACTIVATIONS[recipe.architecture.activation]
    a1, a2 = w1[:, 0], w2[:, 0]
    z = x.k @ a1
    h, pull = act.tap(z)
    o = h @ a2
    u2 = _error(recipe, x, o)
    back = u2 @ a2.mT
    u1 = pull(back)
    s1, s2 = _scale(x, x.k, u1)[0], _scale(x, h, u2)[0]

    rows = x.rows()
    zr = torch.bmm(x.pairs * s1.unsqueeze(-2) * (x.q @ x.k.mT), u1).neg_()
    for row, w in zip(rows, w1.unbind(1), strict=True):
        zr.baddbmm_(x.q * row, w)
    hr = act.value(zr)
    seen = [hr @ w for w in w2.unbind(1)]
    out = torch.bmm(x.pairs * s2.unsqueeze(-2) * (hr @ h.mT), u2).neg_()
    for row, s in zip(rows, seen, strict=True):
        out.addcmul_(row, s)

    into1, into2 = x.into * s1.unsqueeze(-2), x.into * s2.unsqueeze(-2)
    return out, [z, o, back, zr, *seen], _mixed(x, w1, x.k, u1, into1), _mixed(x, w2, h, u2, into2)


def _mixed(x: Chunk, w: Tensor, keys: Tensor, errors: Tensor, into: Tensor) -> Tensor:
    """``mix w + (into keys)^T errors`` for every row of the stack ``[b, J, in, out]``."""
    new = (x.mix @ w.flatten(2)).unflatten(2, w.shape[2:])
    for i, row in enumerate(into.unbind(1)):
        if keys.shape[-1] <= errors.shape[-1]:
            new[:, i].baddbmm_((keys * row.unsqueeze(-1)).mT, errors)
        else:
            new[:, i].baddbmm_(keys.mT, errors * row.unsqueeze(-1))
    return new


def _backward(
    recipe: Recipe,
    x: Chunk,
    weights: tuple[Tensor, ...],
    record: tuple[Tensor, ...],
    d_out: Tensor,
    d_w1: Tensor,
    d_w2: Tensor,
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Gradients of one chunk's inputs, and of the stacks before it, from those of its output and of the stacks after it."""
    act = ACTIVATIONS[recipe.architecture.activation]
    w1, w2 = weights
    z, o, back, zr, *seen = record
    a1, a2, rows = w1[:, 0], w2[:, 0], x.rows()
    h, pull = act.tap(z)
    hr, pull_r = act.tap(zr)
    u1 = pull(back)
    with torch.enable_grad():
        leaf = x._replace(
            k=x.k.detach().requires_grad_(),
            v=x.v.detach().requires_grad_(),
            gates=tuple(g.detach().requires_grad_() for g in x.gates),
        )
        o_leaf = o.detach().requires_grad_()
        u2_graph = _error(recipe, leaf, o_leaf)
    u2 = u2_graph.detach()
    (s1, *norms1), (s2, *norms2) = _scale(x, x.k, u1), _scale(x, h, u2)

    # the second read: out = sum_j rows_j (hr W2_j) - (pairs s2 (hr h^T)) u2
    scores2, pulled2, weight2 = hr @ h.mT, d_out @ u2.mT, x.pairs * s2.unsqueeze(-2)
    d_scores2, d_weight2 = weight2 * pulled2, scores2 * pulled2
    scaled = [d_out * row for row in rows]
    d_hr = torch.bmm(d_scores2, h).neg_()
    for d, w in zip(scaled, w2.unbind(1), strict=True):
        d_hr.baddbmm_(d, w.mT)
    d_h = torch.bmm(d_scores2.mT, hr).neg_()
    d_u2 = torch.bmm((weight2 * scores2).mT, d_out).neg_()
    d_rows = [(d_out * s).sum(-1) for s in seen]
    new2 = (x.mix.mT @ d_w2.flatten(2)).unflatten(2, w2.shape[2:])
    for j, d in enumerate(scaled):
        new2[:, j].baddbmm_(hr.mT, d)

    # the first: zr = sum_j rows_j (q W1_j) - (pairs s1 (q k^T)) u1
    d_zr = pull_r(d_hr)
    scores1, pulled1, weight1 = x.q @ x.k.mT, d_zr @ u1.mT, x.pairs * s1.unsqueeze(-2)
    d_scores1, d_weight1 = weight1 * pulled1, scores1 * pulled1
    d_q = torch.bmm(d_scores1, x.k).neg_()
    d_k = torch.bmm(d_scores1.mT, x.q).neg_()
    d_u1 = torch.bmm((weight1 * scores1).mT, d_zr).neg_()
    new1 = (x.mix.mT @ d_w1.flatten(2)).unflatten(2, w1.shape[2:])
    for j, (row, w) in enumerate(zip(rows, w1.unbind(1), strict=True)):
        answer = d_zr @ w.mT
        d_rows[j] += (answer * x.q).sum(-1)
        d_q.addcmul_(row, answer)
        new1[:, j].baddbmm_((x.q * row).mT, d_zr)

    # the writes: W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors
    d_mix = d_w1.flatten(2) @ w1.flatten(2).mT + d_w2.flatten(2) @ w2.flatten(2).mT
    d_into1, d_into2 = torch.empty_like(x.into), torch.empty_like(x.into)
    into1, into2 = (x.into * s1.unsqueeze(-2)).unsqueeze(-1), (x.into * s2.unsqueeze(-2)).unsqueeze(-1)
    for i in range(x.into.shape[1]):
        answer = u1 @ d_w1[:, i].mT
        d_into1[:, i] = (answer * x.k).sum(-1)
        d_k.addcmul_(into1[:, i], answer)
        d_u1.baddbmm_(x.k * into1[:, i], d_w1[:, i])
        answer = h @ d_w2[:, i]
        d_into2[:, i] = (answer * u2).sum(-1)
        d_u2.addcmul_(into2[:, i], answer)
        d_h.baddbmm_(u2 * into2[:, i], d_w2[:, i].mT)

    # the bounded learning rates
    d_pairs = -(d_weight1 * s1.unsqueeze(-2)).addcmul_(d_weight2, s2.unsqueeze(-2))
    d_into = d_into1 * s1.unsqueeze(-2) + d_into2 * s2.unsqueeze(-2)
    d_s1 = (d_into1 * x.into).sum(-2) - (d_weight1 * x.pairs).sum(-2)
    d_s2 = (d_into2 * x.into).sum(-2) - (d_weight2 * x.pairs).sum(-2)
    d_lr, d_inverse = d_s1 + d_s2, None
    if x.inverse is not None:
        d_lr, d_inverse = torch.zeros_like(x.lr), torch.zeros_like(x.lr)
        for d_s, (a, b, norm), keys, errors, d_keys, d_errors in (
            (d_s1, norms1, x.k, u1, d_k, d_u1),
            (d_s2, norms2, h, u2, d_h, d_u2),
        ):
            shrink = (1 + norm * x.lr * x.inverse) ** -2 * d_s
            d_lr += shrink
            shrink = shrink * x.lr.square()
            d_inverse -= shrink * norm
            d_norm = -shrink * x.inverse / norm
            d_keys.addcmul_((d_norm * b).unsqueeze(-1), keys)
            d_errors.addcmul_((d_norm * a).unsqueeze(-1), errors)

    # the tap: u1 = (u2 W2^T) act'(z), u2 = error(o), o = h W2, h = act(z), z = k W1
    with torch.enable_grad():
        leaves = [z.detach().requires_grad_(), back.detach().requires_grad_()]
        curved = act.tap(leaves[0])[1](leaves[1])
    d_z, d_back = _grad(curved, leaves, d_u1)
    d_u2.baddbmm_(d_back, a2)
    new2[:, 0].baddbmm_(d_back.mT, u2)
    d_o, d_k_error, d_v, *d_gates = _grad(u2_graph, [o_leaf, leaf.k, leaf.v, *leaf.gates], d_u2)
    d_h.baddbmm_(d_o, a2.mT)
    new2[:, 0].baddbmm_(h.mT, d_o)
    d_z = d_z + pull(d_h)
    d_k += d_k_error
    d_k.baddbmm_(d_z, a1.mT)
    new1[:, 0].baddbmm_(x.k.mT, d_z)
    d_slots = None if x.slots is None else -torch.stack(d_rows[1:], -1)
    return [d_q, d_k, d_v, d_lr, d_inverse, d_rows[0], d_pairs, d_slots, d_mix, d_into, *d_gates], new1, new2


def _grad(output: Tensor, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Gradients of an output that may not depend on some inputs, or on any."""
    if not output.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(output, inputs, upstream, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def _again(recipe: Recipe, tensors: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The same gradients as a graph of their own: `_forward` is plain autograd when it is asked to be."""
    chunks, w1, w2 = _cut(recipe, tensors)
    out = []
    for x in chunks:
        o, _, w1, w2 = _forward(recipe, x, w1, w2)
        out.append(o)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    outputs = [torch.cat(out, 1), w1, w2]
    found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]

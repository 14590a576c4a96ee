"""The definition: one token at a time, the gradient by autograd of the loss. Slow and obvious; never optimised.

Shapes: B batch, H heads, one token, P replayed pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.problem import Inputs, algorithm_gates, per_channel
from miras.engine.weights import (
    Plain,
    Shapes,
    advance,
    anchor_weights,
    context,
    decay_on,
    gate_on,
    link_slopes,
    opened,
    token_link,
)
from miras.pullback import vjp
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """All tokens of a batch in the same phase, one after the other: ``[B, H, T, D_value]`` and the state."""
    outputs = []
    for one in x.split([1] * x.length):
        y, state = token(spec, shapes, opened(spec, state), one)
        outputs.append(y)
    return torch.cat(outputs, 2), state


def token(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """One token: gradients at the anchor, filter, direction, decay, link, read."""
    algorithm, retention = spec.algorithm, spec.retention
    heads = algorithm_gates(spec, x)
    anchor = anchor_weights(spec, shapes, state)
    k, v, pair, extra = _replay(spec, state.extra, x)
    slopes = link_slopes(spec, shapes, state)
    gradients, extra = _gradients(spec, shapes, anchor, slopes, k, v, pair, x.token, heads, extra)
    if algorithm.lr_is_row:
        gradients = {n: gate_on(shapes[n], heads["lr"], "head")[:, :, 0] * g for n, g in gradients.items()}

    memory, slots = {}, {}
    for n, g in gradients.items():
        update = g
        if algorithm.slots:
            f = algorithm.filter(1, heads)
            s = state.slots[n]
            update = _weighted(f.out_in[..., 0, :], g.unsqueeze(2)) + _weighted(f.out_slot[..., 0, :], s)
            slots[n] = torch.stack(
                [
                    _weighted(f.slot_in[..., i, :], g.unsqueeze(2)) + _weighted(f.slot_slot[..., i, :], s)
                    for i in range(algorithm.slots)
                ],
                2,
            )
        update = algorithm.direction(update, len(shapes[n].shape))
        if algorithm.lr_is_step:
            update = gate_on(shapes[n], heads["lr"], "head")[:, :, 0] * update
        if not retention.link_is_identity:
            update = retention.pull(update, context(n, shapes[n], state.anchor, extra, None, tokens=False))
        kept = state.memory[n]
        if "log_decay" in retention.gates:
            kept = decay_on(spec, shapes[n], x.token)[:, :, 0].exp() * kept
        memory[n] = kept - update

    if "threshold" in retention.gates:
        threshold = x.token["threshold"][..., 0]
        if retention.accumulates_threshold:
            share = heads["log_decay"][..., 0].exp() if "log_decay" in heads else 1.0
            threshold = threshold + share * extra["threshold"]
        extra = extra | {"threshold": threshold}

    after = state._replace(memory=memory, slots=slots, extra=extra)
    source = state if spec.read == "previous" else after
    weights = (
        anchor
        if spec.read == "anchor"
        else {
            n: token_link(spec, n, shapes[n], source.memory[n].unsqueeze(2), source, _last(source.extra))[:, :, 0]
            for n in memory
        }
    )
    q = x.q
    if algorithm.reads_through_query:
        z = spec.architecture.features(q)
        z, extra = algorithm.query(z, spec.architecture.features(x.k), heads, extra)
        y = Plain(weights).dense(next(iter(shapes)), z)
        after = after._replace(extra=extra)
    else:
        y = spec.architecture.forward(Plain(weights), q)
    return y, advance(spec, shapes, after, 1)


def _gradients(
    spec: MirasSpec,
    shapes: Shapes,
    anchor: Weights,
    slopes: Weights,
    k: Tensor,
    v: Tensor,
    pair: Weights,
    token: Weights,
    heads: Weights,
    extra: Weights,
) -> tuple[Weights, Weights]:
    """The weighted sum over pairs of the gradient of every fast weight, ``[B, H, *weight]``."""
    algorithm, bias, architecture = spec.algorithm, spec.bias, spec.architecture
    if spec.retention.gradient_at == "decayed":
        anchor = {n: decay_on(spec, shapes[n], token)[:, :, 0].exp() * w for n, w in anchor.items()}
    total: Weights = {n: torch.zeros_like(w) for n, w in anchor.items()}
    for p in range(k.shape[2]):
        kp, vp = k.narrow(2, p, 1), v.narrow(2, p, 1)
        gates = {g: pair[g].narrow(2, p, 1) for g in bias.gates}
        gates = {g: per_channel(x) for g, x in gates.items()}
        features = architecture.features(kp)

        def loss(w: Weights, kp: Tensor = kp, vp: Tensor = vp, gates: Weights = gates) -> tuple[Tensor, tuple[()]]:
            return bias.loss(architecture.forward(Plain(w), kp), vp, **gates), ()

        def answer(w: Weights, kp: Tensor = kp) -> tuple[Tensor, tuple[()]]:
            return architecture.forward(Plain(w), kp), ()

        if bias.residual_is_gradient and not algorithm.implicit:
            lost, pull, _ = vjp(loss, anchor)
            g = pull(torch.ones_like(lost))
        else:
            prediction, pull, _ = vjp(answer, anchor)
            step = (
                per_channel(pair["lr"].narrow(2, p, 1)) * features.square().sum(-1, keepdim=True)
                if algorithm.implicit
                else prediction
            )
            g = pull(algorithm.error(bias, prediction, vp, step, gates))
        if algorithm.needs_matrices:
            g = g | _adjusted(spec, anchor, kp, g)
        if architecture.is_linear:
            gain, extra = algorithm.write(features, heads, extra)
            if gain is not features:  # the same error, written along another key
                prediction, _ = answer(anchor)
                error = algorithm.error(bias, prediction, vp, prediction, gates)
                g = {name: gain.mT @ error for name in g}
        for n in g:
            g[n] = _weight(spec, shapes, n, g[n], pair, p)
            if "inverse_bound" in pair:
                dims = tuple(range(2, g[n].dim()))
                norm = (g[n].square().sum(dims, keepdim=True) + 1e-30).sqrt()
                if n in slopes:
                    norm = norm * slopes[n].reshape(norm.shape)
                bound = gate_on(shapes[n], pair["inverse_bound"].narrow(2, p, 1), "head")[:, :, 0]
                g[n] = g[n] / (1 + norm * bound)
            total[n] = total[n] + g[n]
    return total, extra


def _adjusted(spec: MirasSpec, anchor: Weights, k: Tensor, g: Weights) -> Weights:
    """Gradients of matrices after `Algorithm.adjust`, which sees the output of the matrix."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    class Recording(Plain):
        def dense(self, name: str, x: Tensor) -> Tensor:
            seen[name] = (x, super().dense(name, x))
            return seen[name][1]

    spec.architecture.forward(Recording(anchor), k)
    changed = {}
    for n, (x, y) in seen.items():
        change = spec.algorithm.adjust(torch.zeros_like(y), y)
        changed[n] = g[n] + x.mT @ change
    return changed


def _weight(spec: MirasSpec, shapes: Shapes, name: str, g: Tensor, pair: Weights, p: int) -> Tensor:
    """One pair's gradient times its learning rate, or its weight in the window."""
    for gate in ("lr", "gamma"):
        if gate in pair:
            scale = gate_on(shapes[name], pair[gate].narrow(2, p, 1), spec.gates[gate].per)
            return scale[:, :, 0] * g
    return g


def _replay(spec: MirasSpec, extra: Weights, x: Inputs) -> tuple[Tensor, Tensor, Weights, Weights]:
    """The pairs of the window ending at this token, and the state that remembers all but the oldest."""
    if spec.algorithm.window == 1:
        return x.k, x.v, x.pair, extra
    new = {"k": x.k, "v": x.v, **x.pair}
    line = {g: torch.cat([extra[f"replay.{g}"], t], 2) for g, t in new.items()}
    n = x.pairs
    kept = {f"replay.{g}": t.narrow(2, n, t.shape[2] - n) for g, t in line.items()}
    return line.pop("k"), line.pop("v"), line, extra | kept


def _weighted(coefficients: Tensor, stack: Tensor) -> Tensor:
    """``sum_j c[..., j] stack[:, :, j]`` for a stack of weights."""
    dims = stack.dim() - 3
    return (coefficients.reshape(*coefficients.shape, *[1] * dims) * stack).sum(2)


def _last(extra: Weights) -> Tensor | None:
    return extra["threshold"][..., None] if "threshold" in extra else None

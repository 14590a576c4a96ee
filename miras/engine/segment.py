"""A segment of tokens that share one anchor: their gradients as rank-1 factors, their updates as coefficient matrices.

Shapes: B batch, H heads, n tokens, P pairs (replayed ones first), K slots, I and O the sides of a matrix, M its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from miras.architectures import FastWeight, View
from miras.engine.coefficients import Coefficients, coefficients, side_by_side
from miras.engine.problem import Inputs, algorithm_gates, per_channel
from miras.engine.weights import (
    Decayed,
    PerToken,
    Plain,
    Shapes,
    anchor_weights,
    decay_on,
    gate_on,
    has_channel,
    link_slopes,
)
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


class Factor(NamedTuple):
    """Per-pair gradients of one weight: ``scale[p] x[p] (x) d[p]`` for a matrix, ``d[p]`` itself for the others."""

    x: Tensor | None  # [B, H, P, I]
    d: Tensor  # [B, H, P, O] or [B, H, P, *weight]
    scale: Tensor | None = None  # [B, H, P]; kept apart because the coefficients are narrower than d

    def scaled(self, coefficients: Tensor) -> Tensor:
        """Coefficients ``[.., P]`` of the unscaled factors."""
        return coefficients if self.scale is None else coefficients * self.scale[..., None, :]

    def pair(self) -> tuple[Tensor, Tensor]:
        """A matrix's factors with the scale in the error."""
        assert self.x is not None
        return self.x, self.d if self.scale is None else self.d * self.scale[..., None]


@dataclass
class Segment:
    """Tokens that share an anchor, with their coefficients."""

    spec: MirasSpec
    shapes: Shapes
    state: MemoryState
    x: Inputs
    gates: Weights  # one a token, [B, H, n]
    c: Coefficients

    def log_channels(self, name: str) -> tuple[str, Tensor] | None:
        """The axis (``key`` or ``value``) and cumulative logs ``[B, H, n, D]`` of a decay per channel, if this weight has one."""
        if "log_decay" not in self.x.token:
            return None
        per = self.spec.gates["log_decay"].per
        if not has_channel(self.shapes[name], per):
            return None
        return per, self.x.token["log_decay"].cumsum(2)

    def thresholds(self) -> Tensor | None:
        """The threshold every token's link sees, ``[B, H, n]``, or the last one's where coefficients are its own."""
        if "threshold" not in self.gates:
            return None
        if not self.spec.retention.accumulates_threshold:
            return self.gates["threshold"]
        start = self.state.extra["threshold"]
        return self.c.carry * start[..., None] + (self.c.decay @ self.gates["threshold"][..., None])[..., 0]

    def end_slots(self, name: str, factor: Factor) -> Tensor | None:
        """The filter's slots after the last token, ``[B, H, K, *weight]``."""
        if name not in self.state.slots:
            return None
        carried = contract(self.c.end_mix[..., 1:, 1:], self.state.slots[name])
        rows = self.c.end_pairs[..., 1:, :]
        if factor.x is None:
            return carried + contract(rows, factor.d)
        rows = factor.scaled(rows)
        return carried + torch.stack([(factor.x * row[..., None]).mT @ factor.d for row in rows.unbind(-2)], 2)


def segments(spec: MirasSpec, x: Inputs, lengths: list[int], last: bool) -> list[tuple[Inputs, Weights, Coefficients]]:
    """Cuts a sequence and forms the coefficients of all pieces, or (``last``) of their last tokens.

    Neighbours of equal length share one batch.
    """
    gates = algorithm_gates(spec, x)
    pieces = x.split(lengths)
    split_gates = [
        dict(zip(gates, parts, strict=True))
        for parts in zip(*(g.split(lengths, 2) for g in gates.values()), strict=True)
    ]
    found: list[Coefficients] = []
    start = token = 0
    while start < len(lengths):
        n = lengths[start]
        m = next((i for i in range(start, len(lengths)) if lengths[i] != n), len(lengths)) - start
        stretch = {g: t.narrow(2, token, m * n).unflatten(2, (m, n)) for g, t in gates.items() if t.dim() == 3}
        like = x.q[..., 0].narrow(2, token, m * n).unflatten(2, (m, n))
        found += side_by_side(coefficients(spec, stretch, like, x.pairs, last), m)
        start, token = start + m, token + m * n
    return list(zip(pieces, split_gates, found, strict=True))


def surprise(seg: Segment) -> tuple[dict[str, Factor], Weights]:
    """Weighted gradients of all pairs at the anchor, as factors, and the extra state after them."""
    spec, x, algorithm = seg.spec, seg.x, seg.spec.algorithm
    k, v, pair, extra = _replay(spec, seg.state.extra, x)
    tap = spec.architecture.tap(anchor_view(spec, seg.shapes, seg.state, x), k)
    step = tap.prediction
    if algorithm.implicit:
        step = per_channel(pair["lr"]) * tap.inputs[next(iter(seg.shapes))].square().sum(-1, keepdim=True)
    errors = tap.pull(algorithm.error(spec.bias, tap.prediction, v, step, bias_gates(spec, pair)))
    factors: dict[str, Factor] = {}
    slopes = link_slopes(spec, seg.shapes, seg.state)
    for n, weight in seg.shapes.items():
        d, inputs = errors[n], None
        if weight.kind == "dense":
            d, inputs = algorithm.adjust(d, tap.outputs[n]), tap.inputs[n]
            if spec.architecture.is_linear:
                inputs, extra = algorithm.write(inputs, seg.gates, extra)
        factors[n] = weigh(spec, weight, Factor(inputs, d), pair, slopes.get(n))
    return factors, extra


def anchor_view(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> Plain | Decayed | PerToken:
    """The weights at which the pairs of a segment see their gradient."""
    weights = anchor_weights(spec, shapes, state)
    if spec.retention.gradient_at == "anchor":
        return Plain(weights)
    decays = {n: decay_on(spec, shapes[n], x.token).exp().repeat_interleave(x.pairs, 2) for n in weights}
    if spec.gates["log_decay"].per == "entry":  # not a factor of a key and one of an answer
        return PerToken({n: w.unsqueeze(2) * decays[n] for n, w in weights.items()})
    return Decayed(weights, decays)


def bias_gates(spec: MirasSpec, pair: Weights) -> Weights:
    """The bias's gates, broadcastable to predictions."""
    return {g: per_channel(pair[g]) for g in spec.bias.gates}


def weigh(spec: MirasSpec, weight: FastWeight, factor: Factor, pair: Weights, slope: Tensor | None = None) -> Factor:
    """Multiplies every pair's gradient by its learning rate (or its weight in the window) and bounds its norm.

    ``slope``, ``[B, H]``, is how much the link magnifies a step, since the bound is one of what is read.
    """
    x, d, scale = factor
    gate = "lr" if "lr" in pair else "gamma"
    if gate in pair:
        by = gate_on(weight, pair[gate], spec.gates[gate].per)
        if x is None:
            d = d * by
        elif by.shape[-2:] == (1, 1):
            scale = by[..., 0, 0]
        elif by.shape[-1] == 1:  # per key channel: the input axis
            x = x * by[..., 0]
        else:
            d = d * by[..., 0, :]
    if "inverse_bound" not in pair:
        return Factor(x, d, scale)
    dims = tuple(range(3, d.dim()))
    squares = d.square().sum(dims)
    if x is not None:
        squares = squares * x.square().sum(-1)
    norm = (squares + 1e-30).sqrt() if scale is None else (squares + 1e-30).sqrt() * scale
    if slope is not None:
        norm = norm * slope[..., None]
    damp = 1 / (1 + norm * pair["inverse_bound"])
    if x is None:
        return Factor(x, d * damp.reshape(*damp.shape, *[1] * len(dims)))
    return Factor(x, d, damp if scale is None else damp * scale)


def _replay(spec: MirasSpec, extra: Weights, x: Inputs) -> tuple[Tensor, Tensor, Weights, Weights]:
    """All pairs the segment learns from, those of the window before it first, and the state that remembers the last ones."""
    if spec.algorithm.window == 1:
        return x.k, x.v, x.pair, extra
    line = {g: torch.cat([extra[f"replay.{g}"], t], 2) for g, t in {"k": x.k, "v": x.v, **x.pair}.items()}
    keep = (spec.algorithm.window - 1) * x.pairs
    kept = {f"replay.{g}": t.narrow(2, t.shape[2] - keep, keep) for g, t in line.items()}
    return line.pop("k"), line.pop("v"), line, extra | kept


def read(seg: Segment, view: View, extra: Weights) -> tuple[Tensor, Weights]:
    """The memory's answers to the segment's queries."""
    architecture, algorithm = seg.spec.architecture, seg.spec.algorithm
    if not algorithm.reads_through_query:
        return architecture.forward(view, seg.x.q), extra
    q, extra = algorithm.query(architecture.features(seg.x.q), architecture.features(seg.x.k), seg.gates, extra)
    return view.dense(next(iter(seg.shapes)), q), extra


def contract(coefficients: Tensor, stack: Tensor) -> Tensor:
    """``sum_j c[.., i, j] stack[:, :, j]`` for a stack of weights: one matrix product."""
    flat = coefficients @ stack.flatten(3)
    return flat.unflatten(-1, stack.shape[3:])

"""No token's weights are built: a read is a linear attention over the factors of the segment plus a carried part.

Shapes: B batch, H heads, n tokens, I and O the sides of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine import products
from miras.engine.filters import channel_mix, channel_scores, shift_down
from miras.engine.materialised import trajectory
from miras.engine.segment import Factor, Segment, read
from miras.engine.weights import Plain, anchor_weights, context, token_link
from miras.state import MemoryState, Weights


def factored(seg: Segment, factors: dict[str, Factor], extra: Weights, previous: bool) -> tuple[Tensor, MemoryState]:
    """Reads through the factors and forms weights at the end of the segment only."""
    y, extra = read(seg, Factored(seg, factors, previous), extra)
    return y, _finish(seg, factors, extra)


def anchored(seg: Segment, factors: dict[str, Factor], extra: Weights) -> tuple[Tensor, MemoryState]:
    """Reads the anchor (apply, then update), so that any link is formed once a segment."""
    view = Plain(anchor_weights(seg.spec, seg.shapes, seg.state))
    y, extra = read(seg, view, extra)
    return y, _finish(seg, factors, extra)


class Factored:
    """Every token's weights, never built: a read is a linear attention over the chunk's factors plus a carried part."""

    def __init__(self, seg: Segment, factors: dict[str, Factor], previous: bool):
        self.seg, self.factors, self.strict = seg, factors, previous
        self.carry, self.pairs, self.slots = seg.c.previous() if previous else (seg.c.carry, seg.c.pairs, seg.c.slots)
        self.trajectories = {n: trajectory(seg, n, f) for n, f in factors.items() if f.x is None}

    def dense(self, name: str, x: Tensor) -> Tensor:
        left, right = self._multiplier(name)
        return self._linear(name, x * left if left is not None else x) * (right if right is not None else 1.0)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        factor, start = self.factors[name], self.seg.state.memory[name]
        assert factor.x is not None
        if (channels := self.seg.log_channels(name)) is not None:
            return self._channelwise(x, factor, start, *channels)
        slots = self.seg.state.slots.get(name)
        return products.read(x, start, slots, self.carry, self.slots, factor.scaled(self.pairs), factor.x, factor.d)

    def _channelwise(self, x: Tensor, factor: Factor, start: Tensor, per: str, z: Tensor) -> Tensor:
        keys, errors = factor.pair()
        z_row = shift_down(z, 0.0, 2) if self.strict else z
        if per == "key":
            scores = channel_scores(x, keys, z_row, z, self.strict)
            return (x * z_row.exp()) @ start - scores @ errors
        return (x @ start) * z_row.exp() - channel_mix(x @ keys.mT, errors, z_row, z, self.strict)

    def _multiplier(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """The frozen normaliser of ``link_at="chunk"`` on the input or the output side of a matrix."""
        retention, state = self.seg.spec.retention, self.seg.state
        if retention.link_is_identity:
            return None, None
        around = context(name, self.seg.shapes[name], state.anchor, state.extra, None, tokens=False)
        scale = retention.multiplier(around.anchor, around)  # [B, H, I | 1, O | 1]
        return (scale.mT, None) if scale.shape[-2] > 1 else (None, scale)

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        factor, start = self.factors[name], self.seg.state.memory[name]
        assert factor.x is not None
        if (channels := self.seg.log_channels(name)) is not None:
            swapped = Factor(factor.d, factor.x, factor.scale)
            other = "value" if channels[0] == "key" else "key"
            return self._channelwise(d, swapped, start.mT, other, channels[1])
        slots = self.seg.state.slots[name].mT if self.slots is not None else None
        return products.read(d, start.mT, slots, self.carry, self.slots, factor.scaled(self.pairs), factor.d, factor.x)

    def vector(self, name: str) -> Tensor:
        memory, state = self.trajectories[name][0], self.seg.state
        if self.strict:
            memory = torch.cat([state.memory[name].unsqueeze(2), memory[:, :, :-1]], 2)
        return token_link(self.seg.spec, name, self.seg.shapes[name], memory, state, None)

    def tensor(self, name: str) -> Tensor:
        return self.vector(name)


def _finish(seg: Segment, factors: dict[str, Factor], extra: Weights) -> MemoryState:
    memory, slots = ends(seg, factors)
    thresholds = seg.thresholds()
    if thresholds is not None:
        extra = extra | {"threshold": thresholds[..., -1]}
    return seg.state._replace(memory=memory, slots=slots, extra=extra)


def ends(seg: Segment, factors: dict[str, Factor]) -> tuple[Weights, Weights]:
    """Accumulators and slots after the last token."""
    memory, slots = {}, {}
    for n, factor in factors.items():
        if factor.x is None:
            path, end = trajectory(seg, n, factor)
            memory[n] = path[:, :, -1]
        elif (channels := seg.log_channels(n)) is not None:
            memory[n], end = _end_channelwise(factor, seg.state.memory[n], *channels), None
        else:
            into = factor.scaled(seg.c.end_pairs)
            memory[n], end = products.write(
                seg.state.memory[n],
                seg.state.slots.get(n),
                seg.c.end_mix,
                factor.x,
                factor.d,
                into,
                seg.spec.algorithm.enters,
            )
        if end is not None:
            slots[n] = end
    return memory, slots


def _end_channelwise(factor: Factor, start: Tensor, per: str, z: Tensor) -> Tensor:
    x, d = factor.pair()
    kept, since = z[:, :, -1].exp(), (z[:, :, -1:] - z).exp()
    if per == "key":
        return kept[..., None] * start - (x * since).mT @ d
    return kept[..., None, :] * start - x.mT @ (d * since)

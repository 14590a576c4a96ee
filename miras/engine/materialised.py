"""Every token's weights, built: any link, any direction, any decay.

Shapes: B batch, H heads, n tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.filters import scan
from miras.engine.segment import Factor, Segment, contract, read
from miras.engine.weights import PerToken, Plain, anchor_weights, context, decay_on, gate_on, token_link
from miras.state import MemoryState, Weights


def materialised(seg: Segment, factors: dict[str, Factor], extra: Weights) -> tuple[Tensor, MemoryState]:
    """Builds every token's weights: any link, any direction, any decay."""
    spec, shapes, state = seg.spec, seg.shapes, seg.state
    memory, slots, weights = {}, {}, {}
    thresholds = seg.thresholds()
    for n, factor in factors.items():
        path, end = trajectory(seg, n, factor)
        memory[n] = path[:, :, -1]
        if end is not None:
            slots[n] = end
        if spec.read == "anchor":
            continue
        seen = thresholds
        if spec.read == "previous":
            path = torch.cat([state.memory[n].unsqueeze(2), path[:, :, :-1]], 2)
            if thresholds is not None:
                seen = torch.cat([state.extra["threshold"][..., None], thresholds[..., :-1]], -1)
        weights[n] = token_link(spec, n, shapes[n], path, state, seen)
    view = Plain(anchor_weights(spec, shapes, state)) if spec.read == "anchor" else PerToken(weights)
    y, extra = read(seg, view, extra)
    if thresholds is not None:
        extra = extra | {"threshold": thresholds[..., -1]}
    return y, state._replace(memory=memory, slots=slots, extra=extra)


def trajectory(seg: Segment, name: str, factor: Factor) -> tuple[Tensor, Tensor | None]:
    """Every token's accumulator of one weight, ``[B, H, n, *weight]``, and the slots at the end."""
    spec, weight, dims = seg.spec, seg.shapes[name], len(seg.shapes[name].shape)
    g = factor.d
    if factor.x is not None:
        x, d = factor.pair()
        g = x[..., :, None] * d[..., None, :]
    update = g if seg.c.updates is None else contract(seg.c.updates, g)
    if seg.c.update_slots is not None:
        update = update + contract(seg.c.update_slots, seg.state.slots[name])
    update = spec.algorithm.direction(update, dims)
    if spec.algorithm.lr_is_step:
        update = update * gate_on(weight, seg.gates["lr"], "head")
    if not spec.retention.link_is_identity:
        update = spec.retention.pull(
            update, context(name, weight, seg.state.anchor, seg.state.extra, None, tokens=True)
        )
    start = seg.state.memory[name].unsqueeze(2)
    if seg.log_channels(name) is not None:
        log_decay = decay_on(spec, weight, seg.x.token)
        memory = log_decay.cumsum(2).exp() * start - scan(log_decay, update, 2)
    else:
        carry = seg.c.carry.reshape(*seg.c.carry.shape, *[1] * dims)
        memory = carry * start - contract(seg.c.decay, update)
    return memory, seg.end_slots(name, factor)

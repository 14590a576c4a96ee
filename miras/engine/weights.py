"""Fast weights through the retention's maps, and the views through which architectures see them.

Shapes: B batch, H heads, T tokens, I and O the two sides of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from miras.architectures import FastWeight
from miras.retentions import Context
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights

Shapes = Mapping[str, FastWeight]


def context(
    name: str, weight: FastWeight, anchor: Weights, extra: Weights, threshold: Tensor | None, tokens: bool
) -> Context:
    """What the retention's maps may look at, for weights ``[B, H, *weight]`` or (``tokens``) ``[B, H, T, *weight]``."""
    dims = len(weight.shape)
    start = extra.get(f"start.{name}")
    a = anchor[name]
    if tokens:
        a, start = a.unsqueeze(2), None if start is None else start.unsqueeze(2)
    if threshold is not None:
        threshold = threshold.reshape(*threshold.shape, *[1] * dims)
    return Context(dims, a, start, threshold)


def anchor_weights(spec: MirasSpec, shapes: Shapes, state: MemoryState) -> Weights:
    """The weights at which gradients are taken: the link of the anchor."""
    if spec.retention.link_is_identity:
        return state.anchor
    threshold = state.extra.get("threshold_anchor")
    return {
        n: spec.retention.link(a, context(n, shapes[n], state.anchor, state.extra, threshold, tokens=False))
        for n, a in state.anchor.items()
    }


def link_slopes(spec: MirasSpec, shapes: Shapes, state: MemoryState) -> Weights:
    """How much a step of the accumulator is magnified in what is read, ``[B, H]``, for the weights where it may be."""
    if spec.retention.link_is_identity:
        return {}
    threshold = state.extra.get("threshold_anchor")
    slopes = {
        n: spec.retention.slope(a, context(n, shapes[n], state.anchor, state.extra, threshold, tokens=False))
        for n, a in state.anchor.items()
    }
    return {n: s.clamp_min(1.0).flatten(2)[..., 0] for n, s in slopes.items() if s is not None}


def read_weights(spec: MirasSpec, shapes: Shapes, state: MemoryState) -> Weights:
    """The weights a query would read now."""
    if spec.read == "anchor":
        return anchor_weights(spec, shapes, state)
    threshold = state.extra.get("threshold")
    return {
        n: token_link(
            spec, n, shapes[n], a.unsqueeze(2), state, threshold if threshold is None else threshold[..., None]
        )[:, :, 0]
        for n, a in state.memory.items()
    }


def token_link(
    spec: MirasSpec, name: str, weight: FastWeight, memory: Tensor, state: MemoryState, threshold: Tensor | None
) -> Tensor:
    """What tokens read of their accumulators ``[B, H, T, *weight]``."""
    if spec.retention.link_is_identity:
        return memory
    around = context(name, weight, state.anchor, state.extra, threshold, tokens=True)
    if spec.retention.link_at == "chunk":
        frozen = around._replace(threshold=None)
        return memory * spec.retention.multiplier(frozen.anchor, frozen)
    return spec.retention.link(memory, around)


def advance(spec: MirasSpec, shapes: Shapes, state: MemoryState, steps: int) -> MemoryState:
    """Moves the phase by ``steps``; at a boundary commits the memory and moves the anchor there."""
    phase = state.phase[0] + steps
    phases = (phase % spec.chunk_size,) * state.batch
    if phase not in spec.boundaries:
        return state._replace(phase=phases)
    memory, slots, extra = state.memory, state.slots, state.extra
    if spec.algorithm.settles:
        last = max(b for b in (0, *spec.boundaries) if b < phase)
        memory, slots = _settled(spec, shapes, state, phase - last)
    if not spec.retention.link_is_identity:
        threshold = extra.get("threshold")
        memory = {
            n: spec.retention.commit(a, context(n, shapes[n], state.anchor, extra, threshold, tokens=False))
            for n, a in memory.items()
        }
    if "threshold" in extra:
        kept = torch.zeros_like(extra["threshold"]) if spec.retention.accumulates_threshold else extra["threshold"]
        extra = extra | {"threshold": kept, "threshold_anchor": kept}
    return state._replace(memory=memory, slots=slots, anchor=memory, extra=extra, phase=phases)


def _settled(spec: MirasSpec, shapes: Shapes, state: MemoryState, steps: int) -> tuple[Weights, Weights]:
    """Memory and slots after what the algorithm does once a chunk."""
    memory, slots = dict(state.memory), dict(state.slots)
    for n, weight in shapes.items():
        update, slots[n] = spec.algorithm.settle(slots[n], steps, len(weight.shape))
        if update is not None:
            around = context(n, weight, state.anchor, state.extra, None, tokens=False)
            memory[n] = memory[n] - spec.retention.pull(update, around)
    return memory, slots


def opened(spec: MirasSpec, state: MemoryState) -> MemoryState:
    """At a boundary the anchor *is* the memory; saying so keeps the gradients of the initial state unambiguous.

    Slots that do not outlive a chunk are zero there.
    """
    if state.phase[0] != 0 and state.phase[0] != spec.anchor_lag:
        return state
    memory, slots = state.memory, state.slots
    if spec.algorithm.settles:
        kept = spec.algorithm.lasting
        slots = {n: torch.cat([s[:, :, :kept], torch.zeros_like(s[:, :, kept:])], 2) for n, s in slots.items()}
    if spec.step_bound is not None and not spec.is_affine:
        memory, slots = ({n: limited(w) for n, w in weights.items()} for weights in (memory, slots))
    return state._replace(memory=memory, slots=slots, anchor=memory)


LIMIT = 1e8
"""Largest entry of a gradient that goes back through a chunk boundary: its square, summed, is still a float32."""


class _Limited(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-LIMIT, LIMIT)


def limited(x: Tensor) -> Tensor:
    """The same numbers; what is beyond `LIMIT` in their gradient is cut off.

    Learning rates that keep a nonlinear memory bounded may still make it chaotic: the derivative after a state then grows
    exponentially with the distance, overflows, and would take every gradient with it. Up to the limit it is exact.
    """
    return _Limited.apply(x)  # type: ignore[no-any-return]


class Plain:
    """The same weights ``[B, H, *weight]`` for all tokens."""

    def __init__(self, weights: Weights):
        self.weights = weights

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name]

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        return d @ self.weights[name].mT

    def vector(self, name: str) -> Tensor:
        return self.weights[name].unsqueeze(2)

    def tensor(self, name: str) -> Tensor:
        return self.weights[name].unsqueeze(2)


class Decayed:
    """The anchor after one token's own decay: ``decay_t * W`` with a decay per head or per channel."""

    def __init__(self, weights: Weights, decays: Weights):
        self.plain = Plain(weights)
        self.decays = decays  # [B, H, T, *broadcastable to the weight]

    def dense(self, name: str, x: Tensor) -> Tensor:
        left, right = self._sides(name)
        return self.plain.dense(name, x * left) * right

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        left, right = self._sides(name)
        return self.plain.dense_t(name, d * right) * left

    def vector(self, name: str) -> Tensor:
        return self.plain.vector(name) * self.decays[name]

    def tensor(self, name: str) -> Tensor:
        return self.plain.tensor(name) * self.decays[name]

    def _sides(self, name: str) -> tuple[Tensor, Tensor]:
        decay = self.decays[name]  # [B, H, T, I | 1, O | 1]
        one = torch.ones_like(decay[..., :1, :1])[..., 0]
        return (one, decay[..., 0, :]) if decay.shape[-2] == 1 else (decay[..., 0], one)


class PerToken:
    """Every token's own weights ``[B, H, T, *weight]``."""

    def __init__(self, weights: Weights):
        self.weights = weights

    def dense(self, name: str, x: Tensor) -> Tensor:
        return (x.unsqueeze(-2) @ self.weights[name]).squeeze(-2)

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        return (d.unsqueeze(-2) @ self.weights[name].mT).squeeze(-2)

    def vector(self, name: str) -> Tensor:
        return self.weights[name]

    def tensor(self, name: str) -> Tensor:
        return self.weights[name]


def gate_on(weight: FastWeight, gate: Tensor, per: str) -> Tensor:
    """A gate ``[B, H, T]`` or ``[B, H, T, *channels]`` shaped to multiply that weight, ``[B, H, T, *broadcastable]``.

    Channels act on the axis of the weight that is the key's or the value's; a weight without it takes the mean.
    """
    if per == "weight":
        gate = gate[..., weight.index]
    matrix = weight.kind == "dense"
    if per == "entry" and gate.dim() == 5 and weight.kind != "tensor":
        if weight.reads_key and weight.writes_value:
            return gate if matrix else gate.diagonal(dim1=-2, dim2=-1)
        per = "key" if weight.reads_key else "value"
        gate = gate.mean(-1 if per == "key" else -2)
    if gate.dim() == 4 and weight.kind != "tensor":
        if per == "key" and weight.reads_key:
            return gate[..., None] if matrix else gate
        if per == "value" and weight.writes_value:
            return gate[..., None, :] if matrix else gate
    gate = gate.flatten(3).mean(-1) if gate.dim() > 3 else gate
    return gate.reshape(*gate.shape, *[1] * len(weight.shape))


def has_channel(weight: FastWeight, per: str) -> bool:
    """Whether a gate per channel acts on that weight channel by channel."""
    key, value = per in ("key", "entry") and weight.reads_key, per in ("value", "entry") and weight.writes_value
    return weight.kind != "tensor" and (key or value)


def decay_on(spec: MirasSpec, weight: FastWeight, token: Weights) -> Tensor:
    """The log decay of every token shaped to multiply that weight."""
    return gate_on(weight, token["log_decay"], spec.gates["log_decay"].per)

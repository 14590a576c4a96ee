"""Runs a sequence: cuts it into segments that share an anchor and hands each to the planned path.

Shapes: B batch, H heads, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from miras.engine import exact, fused, picard, reference
from miras.engine.coefficients import Coefficients
from miras.engine.factored import anchored, factored
from miras.engine.materialised import materialised
from miras.engine.plan import Plan
from miras.engine.problem import Inputs
from miras.engine.segment import Segment, anchor_view, bias_gates, segments, surprise
from miras.engine.weights import Shapes, advance, opened
from miras.kernels import Dims
from miras.kernels.trust import trusted
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


def run(spec: MirasSpec, shapes: Shapes, plan: Plan, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """Outputs ``[B, H, T, D_value]`` and the state after them, for rows that are all in the same phase."""
    if plan.path == "kernel":
        return _kernel(spec, shapes, plan, state, x)
    if plan.path == "reference":
        return reference.run(spec, shapes, state, x)
    if plan.path == "exact":
        return exact.run(spec, shapes, opened(spec, state), x, plan.tile)
    if plan.path == "fused" and fused.available():
        return _fused(spec, shapes, plan, state, x)
    outputs = []
    for piece in pieces(spec, plan, state, x):
        seg = Segment(spec, shapes, opened(spec, state), *piece)
        if plan.path == "picard":
            y, state = picard.block(seg, plan.tolerance)
        else:
            y, state = segment(plan, seg)
        outputs.append(y)
    return torch.cat(outputs, 2) if len(outputs) != 1 else outputs[0], state


def _kernel(spec: MirasSpec, shapes: Shapes, plan: Plan, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """By the planned kernel; whatever it leaves over, in the dtype of the state on the path around it."""
    assert plan.kernel is not None
    around = replace(plan, path=plan.around)

    def rest(state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
        y, after = run(spec, shapes, around, state, x.to(next(iter(state.memory.values())).dtype))
        return y.to(x.v.dtype), after

    dims, kernel = Dims(x.q.shape[-1], x.v.shape[-1]), plan.kernel
    if kernel.whole and kernel.differs and not kernel.differs(spec, shapes, x):
        kernel = kernel.whole  # the other need not be tried
    kernel = trusted(kernel, spec, dims, x.q.device, x.q.dtype) if fused.outside_functorch() else None
    if kernel is None:
        return rest(state, x)
    if x.length == 1 and not torch.is_grad_enabled():
        return kernel.one(spec, shapes, state, x)
    go = partial(kernel.run, spec, shapes)
    if not kernel.whole_chunks:
        return go(state, x)
    return _whole_chunks(spec, state, x, rest, go, partial(kernel.tail, spec, shapes) if kernel.tail else rest)


def _fused(spec: MirasSpec, shapes: Shapes, plan: Plan, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """Whole chunks by the written-out pass, the rest factored."""
    rest = partial(run, spec, shapes, replace(plan, path="factored"))
    return _whole_chunks(spec, state, x, rest, partial(fused.run, spec, shapes), rest)


Stretch = Callable[[MemoryState, Inputs], tuple[Tensor, MemoryState]]


def _whole_chunks(
    spec: MirasSpec, state: MemoryState, x: Inputs, before: Stretch, chunks: Stretch, after: Stretch
) -> tuple[Tensor, MemoryState]:
    """Whole chunks on one path, what comes before the first and after the last on others."""
    head = min(-state.phase[0] % spec.chunk_size, x.length)
    body = (x.length - head) // spec.chunk_size * spec.chunk_size
    if body == x.length:
        return chunks(state, x)
    outputs: list[Tensor] = []
    for part, go in zip(x.split([head, body, x.length - head - body]), (before, chunks, after), strict=True):
        if part.length:
            y, state = go(state, part)
            outputs.append(y)
    return torch.cat(outputs, 2) if len(outputs) != 1 else outputs[0], state


def segment(plan: Plan, seg: Segment) -> tuple[Tensor, MemoryState]:
    """Tokens between two boundaries."""
    spec = seg.spec
    factors, extra = surprise(seg)
    if plan.path == "materialised":
        y, after = materialised(seg, factors, extra)
    elif spec.read == "anchor":
        y, after = anchored(seg, factors, extra)
    else:
        y, after = factored(seg, factors, extra, spec.read == "previous")
    return y, advance(spec, seg.shapes, after, seg.x.length)


def losses(spec: MirasSpec, shapes: Shapes, plan: Plan, state: MemoryState, x: Inputs) -> Tensor:
    """The inner loss of every pair at its anchor, ``[B, H, P]``, for rows that are all in the same phase."""
    seen = []
    for piece in pieces(spec, plan, state, x):
        seg = Segment(spec, shapes, opened(spec, state), *piece)
        answer = spec.architecture.forward(anchor_view(spec, shapes, seg.state, seg.x), seg.x.k)
        seen.append(spec.bias.loss(answer, seg.x.v, **bias_gates(spec, seg.x.pair)))
        _, state = segment(plan, seg)
    return torch.cat(seen, 2)


def pieces(spec: MirasSpec, plan: Plan, state: MemoryState, x: Inputs) -> list[tuple[Inputs, Weights, Coefficients]]:
    """The segments of a sequence, each with its gates and coefficients."""
    last = plan.path == "factored" and spec.read == "anchor"
    return segments(spec, x, cuts(spec, plan, state.phase[0], x.length), last)


def cuts(spec: MirasSpec, plan: Plan, phase: int, length: int) -> list[int]:
    """Lengths of the segments of a sequence that begins in that phase."""
    if plan.path == "picard":
        return [min(plan.tile, length - start) for start in range(0, length, plan.tile)]
    lengths: list[int] = []
    done = 0
    while done < length:
        now = (phase + done) % spec.chunk_size
        boundary = next(b for b in spec.boundaries if b > now)
        lengths.append(min(boundary - now, length - done))
        done += lengths[-1]
    return lengths

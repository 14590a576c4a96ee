r"""The token-by-token recurrence of a linear memory at matrix speed: a triangular solve per tile, momentum included.

At ``chunk_size=1`` the error of token t is affine in the prediction at $A_{t-1}$, which is linear in the errors before it:
$d=s\odot(\text{base}-Ld)+b$ with $L$ strictly lower triangular, so $(I+\mathrm{diag}(s)L)\,d=s\odot\text{base}+b$.

Shapes: B batch, H heads, n tokens of a tile, I and O the sides of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.chunked import Factor, Segment, bias_gates, factored
from miras.engine.filters import channel_scores, shift_down
from miras.engine.weights import gate_on
from miras.state import MemoryState


def tile(seg: Segment) -> tuple[Tensor, MemoryState]:
    """Any number of tokens, each of which is a chunk of its own."""
    spec, x = seg.spec, seg.x
    name, weight = next(iter(seg.shapes.items()))
    inputs = spec.architecture.features(x.k)
    written, extra = spec.algorithm.write(inputs, seg.gates, seg.state.extra)
    along = written * gate_on(weight, x.pair["lr"], spec.algorithm.per)[..., 0]

    base, coupling = _prediction(seg, name, inputs, along)
    step = (x.pair["lr"] * inputs.square().sum(-1))[..., None]
    slope, offset = spec.algorithm.affine(*spec.bias.affine(x.v, **bias_gates(spec, x.pair)), step)
    errors = torch.linalg.solve_triangular(slope * coupling, slope * base + offset, upper=False, unitriangular=True)
    # when every token moves the anchor, reading the anchor is reading the previous weights
    y, after = factored(seg, {name: Factor(along, errors)}, extra, previous=spec.read != "after")
    return y, after._replace(anchor=after.memory)


def _prediction(seg: Segment, name: str, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions before any write of the tile ``[B, H, n, O]`` and how errors of earlier tokens change them ``[B, H, n, n]``."""
    state, decayed = seg.state, seg.spec.retention.gradient_at == "decayed"
    start = state.memory[name]
    if (channels := seg.log_channels(name)) is not None:
        z = channels[1]
        z_row = z if decayed else shift_down(z, 0.0, 2)
        return (x * z_row.exp()) @ start, channel_scores(x, along, z_row, z, strict=True)
    carry, pairs, slots = seg.c.previous()
    base = carry[..., None] * (x @ start)
    if slots is not None:
        for i in range(slots.shape[-1]):
            base = base - slots[..., i, None] * (x @ state.slots[name][:, :, i])
    coupling = pairs * (x @ along.mT)
    if decayed:
        kept = seg.gates["log_decay"].exp()[..., None]
        base, coupling = kept * base, kept * coupling
    return base, coupling

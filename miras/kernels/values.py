"""Memories of one matrix with a decay per value channel, in chunks that share an anchor or without a prediction.

Errors are affine in the memory, and there are no slots. What a token sees of those before it differs by channel, so
predictions that see them have a triangular system a channel: that has no kernel.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, I and O key and value channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from miras.engine.problem import Inputs, energy
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes, gate_on
from miras.kernels import claims, matrix
from miras.kernels.channels import Tiled, anchored, linear
from miras.kernels.table import Kernel, in_pytorch, power
from miras.spec import MirasSpec
from miras.state import MemoryState


def tokens(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """No prediction, at any chunk size."""
    if reason := linear(spec, shapes, pairs, "value"):
        return reason
    if not claims.free(spec):
        return "the gradient depends on the memory, and every value channel would have a triangular system of its own"
    return claims.tried(spec, shapes, claims.tile(spec, shapes, True), 0, 64)


def chunks(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of tokens that share an anchor."""
    if reason := linear(spec, shapes, pairs, "value"):
        return reason
    if spec.chunk_size == 1:
        return "chunk_size is 1: every value channel has a triangular system of its own, as coupling differs by channel"
    return anchored(spec, shapes)


def stretch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, free: bool) -> tuple[Tensor, MemoryState]:
    """One tile after the other; then what queries read, for all tiles at once."""
    from miras.kernels._channels import value_ops as ops

    (name, weight), size = next(iter(shapes.items())), claims.tile(spec, shapes, free)
    tiled = Tiled(x.length, size, power(size))
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    lr = gate_on(weight, x.pair["lr"], spec.algorithm.per)  # [B, H, T, I or 1, O or 1]
    step = (lr.mean((-2, -1)) * energy(keys, lr.dtype))[..., None]
    slope, offset = spec.algorithm.affine(*spec.bias.affine(x.v, **bias_gates(spec, x.pair)), step)
    if lr.shape[-1] > 1:  # only where nothing is predicted
        offset, lr = offset * lr[..., 0, :], torch.ones_like(lr[..., :1])
    along = keys * lr[..., 0]
    q, a, b = (tiled.of(t.to(x.q.dtype)) for t in (queries, along, offset))
    u = None if claims.free(spec) else tiled.of((slope.to(lr.dtype) * keys).to(x.q.dtype))
    z, start = tiled.of(x.token["log_decay"]).cumsum(3), state.memory[name].contiguous()
    base, errors, end, _ = ops.chain(u, b, q, a, z, start, torch.is_grad_enabled())
    written = b if u is None else errors
    y = ops.mix(base, -(q @ a.mT), written, z, spec.read == "previous")
    return tiled.back(y), state._replace(memory={name: end})


CHUNKS = Kernel(
    "value channel chunks",
    chunks,
    matrix.fits,
    partial(matrix.run, solve=False, stretch=stretch),
    in_pytorch,
    proven=True,
)
TOKENS = Kernel(
    "value channel tokens",
    tokens,
    matrix.fits,
    partial(matrix.run, solve=True, stretch=stretch),
    in_pytorch,
    whole_chunks=False,
    proven=True,
)

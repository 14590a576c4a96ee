"""Memories of one matrix with a decay per key channel: gated linear attention, Kimi Delta Attention, and their like.

The numbers of `miras.engine.exact`, or of chunks that share an anchor, with errors affine in the memory and no slots.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, I and O key and value channels.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.problem import Inputs, energy
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes, gate_on, has_channel
from miras.kernels import claims, matrix
from miras.kernels.table import Kernel, in_pytorch, power
from miras.spec import MirasSpec
from miras.state import MemoryState

LARGEST = 128
"""Channels of a head that a program holds."""


def linear(spec: MirasSpec, shapes: Shapes, pairs: int, axis: str) -> str | None:
    """What all kernels of a decay per channel need; ``axis`` is the decay's, ``key`` or ``value``."""
    algorithm = spec.algorithm
    if not spec.architecture.is_linear or len(shapes) != 1:
        return f"architecture {spec.architecture.name!r} is not linear in one matrix"
    weight = next(iter(shapes.values()))
    if "log_decay" not in spec.gates or spec.gates["log_decay"].per != axis or not has_channel(weight, axis):
        return f"no decay per {axis} channel"
    if not spec.retention.link_is_identity or spec.retention.pulls:
        return f"retention {spec.retention.name!r} has a link or turns every update"
    if not algorithm.direction_is_identity or algorithm.lr_is_row or algorithm.window > 1 or pairs > 1:
        return f"algorithm {algorithm.name!r} is not a linear filter of one gradient a token"
    if algorithm.slots or algorithm.settles or algorithm.state(1, torch.zeros(1, 1)):
        return f"algorithm {algorithm.name!r} keeps a state beside the memory"
    if spec.gates["lr"].per not in ("head", "key") and not (axis == spec.gates["lr"].per and claims.free(spec)):
        return "a learning rate that is neither per head nor per key channel"
    if not spec.bias.residual_is_affine or any(gate.per != "head" for gate in spec.bias.gates.values()):
        return f"bias {spec.bias.name!r} has a residual that is not affine in the prediction, or gates per channel"
    if spec.read == "anchor" or spec.anchor_lag:
        return "read is 'anchor', or anchor_lag is not 0"
    if max(weight.shape) > LARGEST:
        return f"a head of {weight.shape[0]} x {weight.shape[1]} is over {LARGEST} x {LARGEST}"
    return None


def tokens(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """The token-by-token recurrence, or no prediction at any chunk size."""
    if reason := linear(spec, shapes, pairs, "key"):
        return reason
    if spec.chunk_size != 1 and not claims.free(spec):
        return f"chunk_size is {spec.chunk_size}, not 1, and the gradient depends on the anchor"
    return claims.tried(spec, shapes, claims.tile(spec, shapes, True), 0, 64)


def chunks(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of tokens that share an anchor."""
    return linear(spec, shapes, pairs, "key") or anchored(spec, shapes)


def anchored(spec: MirasSpec, shapes: Shapes) -> str | None:
    """Whether chunks are of a size and kind that the kernels take."""
    if not 4 <= spec.chunk_size <= claims.LARGEST:
        return f"chunk_size {spec.chunk_size} is not between 4 and {claims.LARGEST}"
    if spec.retention.gradient_at == "decayed":
        return "the gradient is taken at a decayed state"
    return claims.tried(spec, shapes, spec.chunk_size, 0, 64)


class Tiled(NamedTuple):
    """Tokens in tiles that are filled up with zeros: no query, nothing written, nothing decayed.

    Args:
        tokens: how many there are.
        size: tokens of a tile.
        tile: places of a tile for them.
    """

    tokens: int
    size: int
    tile: int

    def of(self, x: Tensor) -> Tensor:
        """``[B, H, T, ...]`` as ``[B, H, m, C, ...]``."""
        rest, beyond = (0, 0) * (x.dim() - 3), -self.tokens % self.size
        if beyond:  # filling up with nothing would still be a copy
            x = F.pad(x, (*rest, 0, beyond))
        x = x.unflatten(2, (-1, self.size))
        if self.tile > self.size:
            x = F.pad(x, (*rest, 0, self.tile - self.size))
        return x.contiguous()

    def back(self, x: Tensor) -> Tensor:
        """The tokens that there are."""
        return x[..., : self.size, :].flatten(2, 3)[:, :, : self.tokens]


def stretch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool) -> tuple[Tensor, MemoryState]:
    """One tile after the other; what a tile does is found before, for all tiles at once."""
    from miras.kernels._channels import ops

    (name, weight), size = next(iter(shapes.items())), claims.tile(spec, shapes, solve)
    tiled, predicts = Tiled(x.length, size, power(size)), not claims.free(spec)
    solve = solve and predicts
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    lr = gate_on(weight, x.pair["lr"], spec.algorithm.per)[..., 0]
    step = (lr.mean(-1) * energy(keys, lr.dtype))[..., None]
    slope, offset = spec.algorithm.affine(*spec.bias.affine(x.v, **bias_gates(spec, x.pair)), step)
    q, k, along, b = (tiled.of(t.to(x.q.dtype)) for t in (queries, keys, keys * lr, offset))
    z = tiled.of(x.token["log_decay"]).cumsum(3)
    early, keys_early = spec.read == "previous", spec.retention.gradient_at != "decayed"
    scores, coupling, asked, predicted, written = ops.pairs(q, k if solve else None, along, z, early, keys_early)
    u = None
    if predicts:
        slope = tiled.of(slope.to(lr.dtype).expand(*x.k.shape[:3], 1))
        if solve:
            inverse = ops.inverse(slope * coupling, q)
            u, b = (inverse * slope.mT).to(q.dtype) @ predicted, inverse @ b
        else:
            u = (slope * k).to(q.dtype)
    kept, start = z[..., -1, :].exp(), state.memory[name].contiguous()
    y, end, *_ = ops.chain(u, b, asked, scores, written, kept, start, torch.is_grad_enabled())
    return tiled.back(y), state._replace(memory={name: end})


CHUNKS = Kernel(
    "channel chunks", chunks, matrix.fits, partial(matrix.run, solve=False, stretch=stretch), in_pytorch, proven=True
)
TOKENS = Kernel(
    "channel tokens",
    tokens,
    matrix.fits,
    partial(matrix.run, solve=True, stretch=stretch),
    in_pytorch,
    whole_chunks=False,
    proven=True,
)

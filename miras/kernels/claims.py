"""What the kernels of one matrix compute: None, or the reason why not."""

from __future__ import annotations

import torch

from miras.algorithms import Algorithm
from miras.engine.weights import Shapes
from miras.kernels import residuals
from miras.spec import MirasSpec

LARGEST = 64
"""Tokens of a chunk for which a program has room, and of a tile where the chunk does not say."""

ROOM = 2 * 256 * 64
"""Numbers of the stacked state that a program can hold: all key channels, and a block of value channels or all of them."""


def one_matrix(spec: MirasSpec, shapes: Shapes) -> str | None:
    """A memory that is linear in one matrix."""
    if not spec.architecture.is_linear or len(shapes) != 1:
        return f"architecture {spec.architecture.name!r} is not linear in one matrix"
    return None


def _linear(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What all kernels of one matrix need: a linear filter of one gradient a token, gates per head."""
    algorithm = spec.algorithm
    if not algorithm.direction_is_identity or algorithm.lr_is_row or algorithm.window > 1 or pairs > 1:
        return f"algorithm {algorithm.name!r} is not a linear filter of one gradient a token"
    if algorithm.settles:
        return f"algorithm {algorithm.name!r} settles its slots at the end of a chunk"
    if algorithm.slots > 3:
        return f"algorithm {algorithm.name!r} keeps {algorithm.slots} slots; there is room for 3"
    if algorithm.state(1, torch.zeros(1, 1)):
        return f"algorithm {algorithm.name!r} keeps a second moment"
    if any(spec.gates[g].per != "head" for g in ("lr", "log_decay", "threshold") if g in spec.gates):
        return "a gate per channel"
    (rows, columns) = next(iter(shapes.values())).shape
    if (1 + algorithm.slots) * rows * (columns if _whole_rows(spec) else 64) > ROOM:
        return f"{1 + algorithm.slots} matrices of {rows} x {columns} do not fit into a program"
    if spec.anchor_lag:
        return "anchor_lag is not 0"
    return None


def tile(spec: MirasSpec, shapes: Shapes, solve: bool) -> int:
    """Tokens of a tile: a chunk, or (``solve``) as many as suit the matrix."""
    if not solve:
        return spec.chunk_size
    return LARGEST if min(next(iter(shapes.values())).shape) >= 64 else LARGEST // 2


def tried(spec: MirasSpec, shapes: Shapes, tokens: int, slots: int, least: int = 33, room: int = 3) -> str | None:
    """Kernels of other sizes were seen to be compiled wrongly, or have not run on a device; see ``benchmarks/NOTES.md``.

    From tiles of 64 tokens or heads of 64 channels on, heads have ``least`` channels, and up to 64 of them ``room`` for slots.
    """
    rows, columns = next(iter(shapes.values())).shape
    if max(tokens, rows) < 64:  # no matrix instructions of whole warp groups
        return None
    most = 128 if _whole_rows(spec) or _bounded(spec) else 256
    if max(rows, columns) > most:
        return f"a head of {rows} x {columns} is over {most} x {most}"
    if min(rows, columns) < least:
        return f"a head of {rows} x {columns} is under {least} x {least}, with tiles of {tokens} tokens"
    if slots > (1 if max(rows, columns) > 64 else room):
        return f"algorithm {spec.algorithm.name!r} keeps {slots} slots, each of {rows} x {columns}"
    return None


def _whole_rows(spec: MirasSpec) -> bool:
    """Whether a program has all value channels of a token, for their norm; under a bound alone those of a head meet to add up theirs."""
    rowwise = residuals.supported(spec.bias) is None and residuals.rowwise(spec.bias)
    return rowwise or (_bounded(spec) and not spec.retention.link_is_identity)


def _bounded(spec: MirasSpec) -> bool:
    return spec.step_bound is not None and not spec.is_affine


def written_by_algorithm(spec: MirasSpec) -> bool:
    """Whether the algorithm makes an affine residual another affine residual."""
    return type(spec.algorithm).affine is not Algorithm.affine


def _residual(spec: MirasSpec) -> str | None:
    """Whether a kernel can compute the error."""
    if spec.bias.residual_is_affine and written_by_algorithm(spec):
        return None
    if spec.algorithm.implicit or spec.algorithm.changes_error:
        return f"algorithm {spec.algorithm.name!r} changes a residual that is not affine"
    return residuals.supported(spec.bias)


def free(spec: MirasSpec) -> bool:
    """Whether no gradient depends on the anchor, so that a tile may be any stretch of tokens."""
    return spec.bias.residual_is_constant and not spec.algorithm.changes_error and spec.read != "anchor"


def chunks(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of tokens that share an anchor, and read what has accumulated."""
    if reason := one_matrix(spec, shapes) or _unlinked(spec):
        return reason
    if spec.read == "anchor":
        return "read is 'anchor'"
    return shared(spec, shapes, pairs)


def _unlinked(spec: MirasSpec) -> str | None:
    retention = spec.retention
    return None if retention.link_is_identity else f"retention {retention.name!r} has a link"


def shared(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of one matrix whose tokens share an anchor, whatever they read, and through whatever link."""
    if reason := _linear(spec, shapes, pairs):
        return reason
    if spec.chunk_size > LARGEST:
        return f"chunk_size {spec.chunk_size} is over {LARGEST}"
    if spec.chunk_size < 4:
        return f"chunk_size {spec.chunk_size} leaves nothing to do in parallel"
    if spec.retention.gradient_at == "decayed":
        return "the gradient is taken at a decayed state"
    return tried(spec, shapes, spec.chunk_size, spec.algorithm.slots) or _residual(spec)


def tokens(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """The token-by-token recurrence: an affine residual, or one without a prediction at any chunk size."""
    if reason := one_matrix(spec, shapes) or _unlinked(spec) or _linear(spec, shapes, pairs):
        return reason
    if reason := tried(spec, shapes, tile(spec, shapes, True), spec.algorithm.slots):
        return reason
    if free(spec):
        return _residual(spec)
    if spec.chunk_size != 1:
        return f"chunk_size is {spec.chunk_size}, not 1, and the gradient depends on the anchor"
    if not spec.bias.residual_is_affine:
        return f"bias {spec.bias.name!r} has a residual that is not affine in the prediction"
    if spec.bias.gates:
        return f"bias {spec.bias.name!r} has gates"
    return _residual(spec)

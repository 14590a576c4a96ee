"""Memories of one matrix: chunks that share an anchor, and the token-by-token recurrence of affine residuals.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.algorithms import QHM, Algorithm, Momentum, Nesterov
from miras.engine.chunked import bias_gates
from miras.engine.coefficients import Coefficients
from miras.engine.coefficients import coefficients as general_coefficients
from miras.engine.problem import Inputs, algorithm_gates, energy
from miras.engine.weights import Shapes, limited
from miras.kernels import residuals
from miras.kernels.table import Dims, Kernel, interpreted, triton_runs
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights

LARGEST = 64
"""Tokens of a chunk for which a program has room, and of a tile where the chunk does not say."""

ROOM = 2 * 256 * 64
"""Numbers of the stacked state that a program can hold: all key channels, and a block of value channels or all of them."""


def _linear(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What both kernels need: one matrix under a linear filter of one gradient a token, gates per head."""
    algorithm = spec.algorithm
    if not spec.architecture.is_linear or len(shapes) != 1:
        return f"architecture {spec.architecture.name!r} is not linear in one matrix"
    if not spec.retention.link_is_identity:
        return f"retention {spec.retention.name!r} has a link"
    if not algorithm.direction_is_identity or algorithm.lr_is_row or algorithm.window > 1 or pairs > 1:
        return f"algorithm {algorithm.name!r} is not a linear filter of one gradient a token"
    if algorithm.settles:
        return f"algorithm {algorithm.name!r} settles its slots at the end of a chunk"
    if algorithm.slots > 3:
        return f"algorithm {algorithm.name!r} keeps {algorithm.slots} slots; there is room for 3"
    if algorithm.state(1, torch.zeros(1, 1)):
        return f"algorithm {algorithm.name!r} keeps a second moment"
    if any(spec.gates[g].per != "head" for g in ("lr", "log_decay") if g in spec.gates):
        return "a gate per channel"
    (rows, columns) = next(iter(shapes.values())).shape
    if (1 + algorithm.slots) * rows * (columns if _whole_rows(spec) else 64) > ROOM:
        return f"{1 + algorithm.slots} matrices of {rows} x {columns} do not fit into a program"
    if spec.anchor_lag:
        return "anchor_lag is not 0"
    return None


def _tile(shapes: Shapes) -> int:
    """Tokens of a tile where the chunk does not say."""
    return LARGEST if min(next(iter(shapes.values())).shape) >= 64 else LARGEST // 2


def _tried(spec: MirasSpec, shapes: Shapes, tile: int) -> str | None:
    """Kernels of other sizes were seen to be compiled wrongly, or have not run on a device; see ``benchmarks/NOTES.md``."""
    rows, columns = next(iter(shapes.values())).shape
    if max(tile, rows) < 64:  # no matrix instructions of whole warp groups
        return None
    if max(rows, columns) > 128:
        return f"a head of {rows} x {columns} is over 128 x 128"
    if min(rows, columns) < 64:
        return f"a head of {rows} x {columns} is under 64 x 64, with tiles of {tile} tokens"
    if spec.algorithm.slots > 1:
        return f"algorithm {spec.algorithm.name!r} keeps {spec.algorithm.slots} slots, each of {rows} x {columns}"
    return None


def _whole_rows(spec: MirasSpec) -> bool:
    """Whether a program needs all value channels of a token: for their norm."""
    bounded = spec.step_bound is not None and not spec.is_affine
    return bounded or (residuals.supported(spec.bias) is None and residuals.rowwise(spec.bias))


def _written_by_algorithm(spec: MirasSpec) -> bool:
    """Whether the algorithm makes an affine residual another affine residual."""
    return type(spec.algorithm).affine is not Algorithm.affine


def _residual(spec: MirasSpec) -> str | None:
    """Whether a kernel can compute the error."""
    if spec.bias.residual_is_affine and _written_by_algorithm(spec):
        return None
    if spec.algorithm.implicit or spec.algorithm.changes_error:
        return f"algorithm {spec.algorithm.name!r} changes a residual that is not affine"
    return residuals.supported(spec.bias)


def free(spec: MirasSpec) -> bool:
    """Whether no gradient depends on the anchor, so that a tile may be any stretch of tokens."""
    return spec.bias.residual_is_constant and not spec.algorithm.changes_error and spec.read != "anchor"


def chunks(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of tokens that share an anchor."""
    if reason := _linear(spec, shapes, pairs):
        return reason
    if spec.chunk_size > LARGEST:
        return f"chunk_size {spec.chunk_size} is over {LARGEST}"
    if spec.chunk_size < 4:
        return f"chunk_size {spec.chunk_size} leaves nothing to do in parallel"
    if spec.retention.gradient_at == "decayed":
        return "the gradient is taken at a decayed state"
    if spec.read == "anchor":
        return "read is 'anchor'"
    return _tried(spec, shapes, spec.chunk_size) or _residual(spec)


def tokens(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """The token-by-token recurrence: an affine residual, or one without a prediction at any chunk size."""
    if reason := _linear(spec, shapes, pairs):
        return reason
    if reason := _tried(spec, shapes, _tile(shapes)):
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


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """Heads whose matrix a program can hold."""
    if reason := triton_runs(device, dtype):
        return reason
    if dtype == torch.float32 and not interpreted():
        return "q, k and v are float32, whose products in full precision are no faster in Triton"
    return f"a head of {dims.key} x {dims.value} is over 256 x 256" if max(dims) > 256 else None


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool) -> tuple[Tensor, MemoryState]:
    """Any tokens if each sees those before it, else whole chunks; cut where the last chunk ends, since the anchor is there."""
    phase = state.phase[0]
    whole = max((phase + x.length) // spec.chunk_size * spec.chunk_size - phase, 0)
    parts = x.split([whole, x.length - whole]) if 0 < whole < x.length else [x]
    outputs: list[Tensor] = []
    for i, part in enumerate(parts):
        y, state = _stretch(spec, shapes, state, part, solve)
        outputs.append(y)
        if i == 0 and whole:
            state = state._replace(anchor=state.memory)
    state = state._replace(phase=((phase + x.length) % spec.chunk_size,) * state.batch)
    return torch.cat(outputs, 2) if len(outputs) != 1 else outputs[0], state


class Readers(NamedTuple):
    """Coefficients of all tiles as the operator takes them."""

    rows: Tensor
    pairs: Tensor
    into: Tensor
    mix: Tensor
    key_rows: Tensor | None
    key_pairs: Tensor | None


def _stretch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool) -> tuple[Tensor, MemoryState]:
    from miras.kernels import _ops

    name = next(iter(shapes))
    size = _tile(shapes) if solve else spec.chunk_size
    solve = solve and not free(spec)
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    bias, value, slope, gate = errors(spec, x, solve)
    start = state.memory[name].unsqueeze(2)
    start = torch.cat([start, state.slots[name]], 2) if name in state.slots else start
    inverse = x.pair.get("inverse_bound")
    if inverse is not None:
        start = limited(start)
    gates = [None if t is None else t.contiguous() for t in (x.pair["lr"], inverse, gate, slope)]
    seen = readers(spec, algorithm_gates(spec, x), x, size, solve)
    keep = torch.is_grad_enabled()
    y, end, *_ = _ops.matrix(queries, keys, value, *gates, *seen, start.contiguous(), bias, keep)
    memory, slots = {name: end[:, :, 0]}, {name: end[:, :, 1:]} if name in state.slots else {}
    return y, state._replace(memory=memory, slots=slots)


def errors(spec: MirasSpec, x: Inputs, solve: bool) -> tuple[str, Tensor, Tensor | None, Tensor | None]:
    """The key of the residual, its values, its slope where every token sees those before it, and its gate."""
    lr, value = x.pair["lr"], x.v
    if _written_by_algorithm(spec):
        step = (lr * energy(spec.architecture.features(x.k), lr.dtype))[..., None]
        slope, offset = spec.algorithm.affine(*spec.bias.affine(value), step)
        slope = slope[..., 0].expand_as(lr).to(lr.dtype)
        return residuals.AFFINE, offset.to(value.dtype), slope if solve else None, slope
    slope = spec.bias.affine(value[..., :1])[0][..., 0].expand_as(lr).to(lr.dtype) if solve else None
    return residuals.key(spec.bias), value, slope, bias_gate(spec, x)


def bias_gate(spec: MirasSpec, x: Inputs) -> Tensor | None:
    """The gate of the bias, ``[B, H, T]`` or, per value channel, ``[B, H, T, O]``."""
    return next((g.squeeze(-1) if g.shape[-1] == 1 else g for g in bias_gates(spec, x.pair).values()), None)


def readers(spec: MirasSpec, gates: Weights, x: Inputs, size: int, solve: bool) -> Readers:
    """By one kernel for filters of at most one slot, else in PyTorch."""
    previous, decayed = spec.read == "previous", spec.retention.gradient_at == "decayed"
    kind, nu = 0, 0.0
    match spec.algorithm:
        case Momentum(order=1):
            kind = 1
        case Nesterov():
            kind = 2
        case QHM():
            kind, nu = 3, spec.algorithm.nu
        case Algorithm(slots=0):
            pass
        case _:
            return _general_readers(spec, gates, x, size, solve)
    from miras.kernels._coefficients import coefficients

    decay, momentum = (gates[g].contiguous() if g in gates else None for g in ("log_decay", "log_momentum"))
    rows, pairs, into, mix, key_rows, key_pairs = coefficients(
        x.pair["lr"], decay, momentum, size, kind, nu, previous, solve, decayed, x.q.dtype
    )
    return Readers(rows, pairs, into, mix, key_rows if solve else None, key_pairs if solve else None)


def _general_readers(spec: MirasSpec, gates: Weights, x: Inputs, size: int, solve: bool) -> Readers:
    c = _coefficients(spec, gates, x, size)
    rows, pairs = _seen(c, spec.read == "previous")
    key_rows = key_pairs = None
    if solve:
        key_rows, key_pairs = _seen(c, True)
        if spec.retention.gradient_at == "decayed":
            kept = _tiled(gates["log_decay"].exp(), c)
            key_rows, key_pairs = key_rows * kept[..., None, :], key_pairs * kept[..., None]
        key_rows, key_pairs = key_rows.contiguous(), key_pairs.to(x.q.dtype).contiguous()
    into, mix = c.end_pairs.contiguous(), c.end_mix.contiguous()
    return Readers(rows.contiguous(), pairs.to(x.q.dtype).contiguous(), into, mix, key_rows, key_pairs)


def _coefficients(spec: MirasSpec, gates: Weights, x: Inputs, size: int) -> Coefficients:
    """Those of all tiles, ``[B, H, m, ...]``; of a last tile that is not full, filled up with zeros."""
    like = next(iter(x.pair.values())).new_zeros(x.q.shape[:3])
    whole = x.length // size * size
    parts = [
        general_coefficients(
            spec,
            {g: t.narrow(2, a, n * m).unflatten(2, (m, n)) for g, t in gates.items() if t.dim() == 3},
            like.narrow(2, a, n * m).unflatten(2, (m, n)),
            1,
        )
        for a, m, n in ((0, whole // size, size), (whole, 1, x.length - whole))
        if m * n
    ]
    if len(parts) == 1 and parts[0].carry.shape[-1] == size:
        return parts[0]
    padded = [_padded(c, size - c.carry.shape[-1]) for c in parts]
    return Coefficients(*(None if t[0] is None else torch.cat(t, 2) for t in zip(*padded, strict=True)))  # pyright: ignore[reportArgumentType]


def _padded(c: Coefficients, more: int) -> Coefficients:
    """With zeros for tokens that do not exist; what only builds the others is left out."""
    square, tokens, columns = (0, more, 0, more), (0, more), (0, 0, 0, more)
    return c._replace(
        decay=F.pad(c.decay, square),
        carry=F.pad(c.carry, tokens),
        updates=None,
        update_slots=None,
        pairs=F.pad(c.pairs, square),
        slots=None if c.slots is None else F.pad(c.slots, columns),
        end_pairs=F.pad(c.end_pairs, tokens),
    )


def _seen(c: Coefficients, previous: bool) -> tuple[Tensor, Tensor]:
    """What tokens multiply memory and slots with, ``[B, H, m, J, C]``, and the pairs of their tile."""
    carry, pairs, slots = c.previous() if previous else (c.carry, c.pairs, c.slots)
    rows = carry.unsqueeze(-2)
    return (rows if slots is None else torch.cat([rows, -slots.mT], -2)), pairs


def _tiled(gate: Tensor, c: Coefficients) -> Tensor:
    """A gate ``[B, H, T]`` as ``[B, H, m, C]``."""
    m, size = c.carry.shape[-2:]
    return F.pad(gate, (0, m * size - gate.shape[2])).unflatten(2, (m, size))


def one(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A single token, see `miras.kernels.step`."""
    from miras.kernels import step

    return step.matrix(spec, shapes, state, x)


CHUNKS = Kernel("matrix chunks", chunks, fits, partial(run, solve=False), one, proven=True)
TOKENS = Kernel("matrix tokens", tokens, fits, partial(run, solve=True), one, whole_chunks=False, proven=True)

"""Memories of one matrix: chunks that share an anchor, and the token-by-token recurrence of affine residuals.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.algorithms import QHM, Algorithm, Momentum, Nesterov
from miras.engine.coefficients import Coefficients
from miras.engine.coefficients import coefficients as general_coefficients
from miras.engine.problem import Inputs, algorithm_gates, energy
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes, limited
from miras.kernels import residuals
from miras.kernels.claims import chunks, free, tile, tokens, written_by_algorithm
from miras.kernels.table import Dims, Kernel, interpreted, triton_runs
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights

Stretch = Callable[[MirasSpec, Shapes, MemoryState, Inputs, bool], tuple[Tensor, MemoryState]]
"""What computes a stretch of tokens: ``(spec, shapes, state, inputs, whether every token sees those before it)``."""


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """Heads whose matrix a program can hold."""
    if reason := triton_runs(device, dtype):
        return reason
    if dtype == torch.float32 and not interpreted():
        return "q, k and v are float32, whose products in full precision are no faster in Triton"
    return f"a head of {dims.key} x {dims.value} is over 256 x 256" if max(dims) > 256 else None


def run(
    spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool, stretch: Stretch
) -> tuple[Tensor, MemoryState]:
    """Any tokens if each sees those before it, else whole chunks; cut where the last chunk ends, since the anchor is there."""
    phase = state.phase[0]
    whole = max((phase + x.length) // spec.chunk_size * spec.chunk_size - phase, 0)
    parts = x.split([whole, x.length - whole]) if 0 < whole < x.length else [x]
    outputs: list[Tensor] = []
    for i, part in enumerate(parts):
        y, state = stretch(spec, shapes, state, part, solve)
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


def stretch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool) -> tuple[Tensor, MemoryState]:
    """One tile after the other."""
    return scanned(operands(spec, shapes, x, solve), shapes, state)


def scanned(given: Operands, shapes: Shapes, state: MemoryState) -> tuple[Tensor, MemoryState]:
    """By the operator, from that state."""
    from miras.kernels._matrix import ops

    y, end, *_ = ops.matrix(*given[:-1], started(given, shapes, state), given.bias, torch.is_grad_enabled())
    return y, unstacked(shapes, state, end)


class Operands(NamedTuple):
    """The arguments of `miras.kernels._matrix.ops.matrix` but for the stack."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    inverse: Tensor | None
    gate: Tensor | None
    slope: Tensor | None
    rows: Tensor
    pairs: Tensor
    into: Tensor
    mix: Tensor
    key_rows: Tensor | None
    key_pairs: Tensor | None
    bias: str


def operands(spec: MirasSpec, shapes: Shapes, x: Inputs, solve: bool) -> Operands:
    """What the operator takes of some tokens, in tiles from the first."""
    size, solve = tile(spec, shapes, solve), solve and not free(spec)
    return under(spec, x, solve, readers(spec, algorithm_gates(spec, x), x, size, solve, form=True))


def under(spec: MirasSpec, x: Inputs, solve: bool, seen: Readers) -> Operands:
    """The same under given coefficients."""
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    bias, value, slope, gate = errors(spec, x, solve)
    inverse, gate, slope = (None if t is None else t.contiguous() for t in (x.pair.get("inverse_bound"), gate, slope))
    return Operands(queries, keys, value, x.pair["lr"].contiguous(), inverse, gate, slope, *seen, bias)


def stacked(shapes: Shapes, state: MemoryState) -> Tensor:
    """Memory and slots, ``[B, H, J, I, O]``."""
    name = next(iter(shapes))
    start = state.memory[name].unsqueeze(2)
    return torch.cat([start, state.slots[name]], 2) if name in state.slots else start


def started(given: Operands, shapes: Shapes, state: MemoryState) -> Tensor:
    """The stack as operators take it, limited where there is a bound."""
    start = stacked(shapes, state)
    return (start if given.inverse is None else limited(start)).contiguous()


def unstacked(shapes: Shapes, state: MemoryState, end: Tensor) -> MemoryState:
    """The state with that memory and those slots."""
    name = next(iter(shapes))
    memory, slots = {name: end[:, :, 0]}, {name: end[:, :, 1:]} if name in state.slots else {}
    return state._replace(memory=memory, slots=slots)


def errors(spec: MirasSpec, x: Inputs, solve: bool) -> tuple[str, Tensor, Tensor | None, Tensor | None]:
    """The key of the residual, its values, its slope where every token sees those before it, and its gate."""
    lr, value = x.pair["lr"], x.v
    if written_by_algorithm(spec):
        step = (lr * energy(spec.architecture.features(x.k), lr.dtype))[..., None]
        slope, offset = spec.algorithm.affine(*spec.bias.affine(value), step)
        slope = slope[..., 0].expand_as(lr).to(lr.dtype)
        return residuals.AFFINE, offset.to(value.dtype), slope if solve else None, slope
    slope = spec.bias.affine(value[..., :1])[0][..., 0].expand_as(lr).to(lr.dtype) if solve else None
    return residuals.key(spec.bias), value, slope, bias_gate(spec, x)


def bias_gate(spec: MirasSpec, x: Inputs) -> Tensor | None:
    """The gate of the bias, ``[B, H, T]`` or, per value channel, ``[B, H, T, O]``."""
    return next((g.squeeze(-1) if g.shape[-1] == 1 else g for g in bias_gates(spec, x.pair).values()), None)


def readers(spec: MirasSpec, gates: Weights, x: Inputs, size: int, solve: bool, form: bool = False) -> Readers:
    """By one kernel for filters of at most one slot, else in PyTorch.

    ``form``: whether who takes pairs forms them where only what they follow from is given, see `miras.kernels._coefficients.formed`.
    """
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
    from miras.kernels._coefficients.ops import coefficients

    decay, momentum = (gates[g].contiguous() if g in gates else None for g in ("log_decay", "log_momentum"))
    rows, pairs, into, mix, key_rows, key_pairs = coefficients(
        x.pair["lr"], decay, momentum, size, kind, nu, previous, solve, decayed, form, x.q.dtype
    )
    return Readers(rows, pairs, into, mix, key_rows if solve else None, key_pairs if solve else None)


def _general_readers(spec: MirasSpec, gates: Weights, x: Inputs, size: int, solve: bool) -> Readers:
    c = all_coefficients(spec, gates, x, size)
    rows, pairs = seen(c, spec.read == "previous")
    key_rows = key_pairs = None
    if solve:
        key_rows, key_pairs = seen(c, True)
        if spec.retention.gradient_at == "decayed":
            kept = _tiled(gates["log_decay"].exp(), c)
            key_rows, key_pairs = key_rows * kept[..., None, :], key_pairs * kept[..., None]
        key_rows, key_pairs = key_rows.contiguous(), key_pairs.to(x.q.dtype).contiguous()
    into, mix = c.end_pairs.contiguous(), c.end_mix.contiguous()
    return Readers(rows.contiguous(), pairs.to(x.q.dtype).contiguous(), into, mix, key_rows, key_pairs)


def all_coefficients(spec: MirasSpec, gates: Weights, x: Inputs, size: int) -> Coefficients:
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


def seen(c: Coefficients, previous: bool) -> tuple[Tensor, Tensor]:
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


CHUNKS = Kernel("matrix chunks", chunks, fits, partial(run, solve=False, stretch=stretch), one, proven=True)
TOKENS = Kernel(
    "matrix tokens", tokens, fits, partial(run, solve=True, stretch=stretch), one, whole_chunks=False, proven=True
)

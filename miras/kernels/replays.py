"""Windows of pairs that are learned again at every anchor (`omega`), by the kernels of one gradient a token.

A chunk of C tokens takes C + c - 1 gradients at its anchor, those of the pairs before it first. It goes to the kernels as a tile of as
many tokens, filled up to the next power of two; the pairs before it have no queries, and all that the window does to gradients is in
the coefficients of the tile, which PyTorch forms.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.algorithms import Omega
from miras.engine.coefficients import Coefficients
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.weights import Shapes
from miras.kernels import claims, matrix, mlp
from miras.kernels.table import Kernel, Supports, in_pytorch, power
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


def one_matrix(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.matrix` computes of the inner algorithm, in chunks."""
    return _supports(claims.chunks, spec, shapes, pairs)


def perceptron(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` computes of it."""
    return _supports(mlp.supports, spec, shapes, pairs)


def _supports(by: Supports, spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    algorithm, before = spec.algorithm, spec.algorithm.window - 1
    if not isinstance(algorithm, Omega) or not before:
        return f"algorithm {algorithm.name!r} replays no pairs"
    if spec.anchor_lag:
        return "anchor_lag is not 0"
    if algorithm.changes_error:
        return f"algorithm {algorithm.inner.name!r} in a window changes errors"
    size, room = _size(spec, shapes), min(_room(spec, shapes), claims.LARGEST)
    if reason := by(replace(spec, algorithm=algorithm.inner, chunk_size=room), shapes, pairs):
        return reason
    if size < 4:
        return f"tiles of {size} tokens, with the {before} pairs before them, leave nothing to do in parallel"
    if size + before > claims.LARGEST:
        return f"chunk_size {spec.chunk_size} and the {before} pairs before a chunk are over {claims.LARGEST}"
    return None


def _size(spec: MirasSpec, shapes: Shapes) -> int:
    """Tokens of a tile: a chunk, or as many as suit the matrix where no gradient depends on the anchor."""
    anywhere = spec.architecture.is_linear and claims.free(spec)
    return claims.tile(spec, shapes, True) - spec.algorithm.window + 1 if anywhere else spec.chunk_size


def _room(spec: MirasSpec, shapes: Shapes) -> int:
    """Pairs of a tile."""
    return power(_size(spec, shapes) + spec.algorithm.window - 1)


def of_one_matrix(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    given = matrix.under(spec, _tiled(spec, shapes, state.extra, x), False, _seen(spec, shapes, x))
    y, after = matrix.scanned(given, shapes, state)
    return _answers(spec, shapes, y, x.length), _after(spec, after, x)


def of_a_perceptron(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    y, after = mlp.chunks(spec, shapes, state, _tiled(spec, shapes, state.extra, x), list(_seen(spec, shapes, x)[:4]))
    return _answers(spec, shapes, y, x.length), _after(spec, after, x)


def _line(extra: Weights, x: Inputs) -> dict[str, Tensor]:
    """All pairs, those remembered first."""
    given = {"k": x.k, "v": x.v, **x.pair}
    return {n: torch.cat([extra[f"replay.{n}"].to(t.dtype), t], 2) for n, t in given.items()}


def _tiled(spec: MirasSpec, shapes: Shapes, extra: Weights, x: Inputs) -> Inputs:
    """Tokens for the inner algorithm, whose rate is a pair's weight in the window: the rate of a token is in the coefficients."""
    size, room, before = _size(spec, shapes), _room(spec, shapes), spec.algorithm.window - 1
    more = -x.length % size

    def of_pairs(t: Tensor) -> Tensor:
        longer = F.pad(t, (*(0, 0) * (t.dim() - 3), room - size - before, more))
        return longer.unfold(2, room, size).movedim(-1, 3).flatten(2, 3)

    pairs = {n: of_pairs(t) for n, t in _line(extra, x).items()}
    for g in spec.bias.gates:  # zero where there is no pair, by which some residuals would divide
        pairs[g] = torch.where(pairs[g] > 0, pairs[g], 1.0)
    q = F.pad(F.pad(x.q, (0, 0, 0, more)).unflatten(2, (-1, size)), (0, 0, room - size, 0)).flatten(2, 3)
    return Inputs(q, pairs.pop("k"), pairs.pop("v"), {}, {"lr": pairs.pop("gamma"), **pairs})


def _answers(spec: MirasSpec, shapes: Shapes, y: Tensor, tokens: int) -> Tensor:
    """Those of the tokens that there are."""
    return y.unflatten(2, (-1, _room(spec, shapes)))[:, :, :, -_size(spec, shapes) :].flatten(2, 3)[:, :, :tokens]


def _seen(spec: MirasSpec, shapes: Shapes, x: Inputs) -> matrix.Readers:
    """Coefficients of all tiles; zeros for what is no token or does not count."""
    size, room = _size(spec, shapes), _room(spec, shapes)
    c: Coefficients = matrix.all_coefficients(spec, algorithm_gates(spec, x), x, size)
    rows, pairs = matrix.seen(c, spec.read == "previous")
    tokens, columns = room - size, room - pairs.shape[-1]
    rows, into = F.pad(rows, (tokens, 0)), F.pad(c.end_pairs, (columns, 0))
    pairs = F.pad(pairs, (columns, 0, tokens, 0))
    pairs = pairs.to(x.q.dtype).contiguous()
    return matrix.Readers(rows.contiguous(), pairs, into.contiguous(), c.end_mix.contiguous(), None, None)


def _after(spec: MirasSpec, state: MemoryState, x: Inputs) -> MemoryState:
    """At a boundary, with the last pairs remembered."""
    keep = spec.algorithm.window - 1
    last = {f"replay.{n}": t[:, :, t.shape[2] - keep :] for n, t in _line(state.extra, x).items()}
    kept = {n: t.to(state.extra[n].dtype) for n, t in last.items()}
    return state._replace(anchor=state.memory, extra=state.extra | kept)


MATRIX = Kernel("matrix under a window", one_matrix, matrix.fits, of_one_matrix, in_pytorch, proven=True)
PERCEPTRON = Kernel("perceptron under a window", perceptron, mlp.fits, of_a_perceptron, in_pytorch, proven=True)

"""Memories of one matrix over segments of a sequence at once, where heads are few; see `miras.kernels._matrix.split`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from miras.biases import L2, Dot
from miras.engine.problem import Inputs
from miras.engine.weights import Shapes
from miras.kernels import claims, matrix, residuals
from miras.kernels.matrix import operands, stacked, unstacked
from miras.kernels.table import Kernel, Supports
from miras.spec import MirasSpec
from miras.state import MemoryState


def supports(claimed: Supports, spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What a kernel of a matrix computes, with errors affine in it."""
    if reason := claimed(spec, shapes, pairs):
        return reason
    if not spec.is_affine or not (claims.written_by_algorithm(spec) or type(spec.bias) in (Dot, L2)):
        return f"bias {spec.bias.name!r} is not dot or l2, so that what a segment does depends on the memory before it"
    return None


def stretch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool) -> tuple[Tensor, MemoryState]:
    """In as many segments as are worth it; what is over, and what is too short, token after token."""
    count, length = cut(spec, shapes, x, solve)
    if count == 1:
        return matrix.stretch(spec, shapes, state, x, solve)
    if count * length == x.length:
        return _segments(spec, shapes, state, x, solve, count)
    body, tail = x.split([count * length, x.length - count * length])
    first, state = _segments(spec, shapes, state, body, solve, count)
    last, state = matrix.stretch(spec, shapes, state, tail, solve)
    return torch.cat([first, last], 2), state


def differs(spec: MirasSpec, shapes: Shapes, x: Inputs, solve: bool) -> bool:
    """Whether there is more than one segment."""
    return cut(spec, shapes, x, solve)[0] > 1


def known(*sizes: int) -> bool:
    """Whether sizes are numbers: what is compiled for every length cannot be cut as suits each."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(n) for n in sizes)


def cut(spec: MirasSpec, shapes: Shapes, x: Inputs, solve: bool) -> tuple[int, int]:
    """Number of segments and tokens of each."""
    if not known(*x.q.shape):
        return 1, x.length
    from miras.kernels._matrix import split
    from miras.kernels._matrix.launches import Tiles

    size = claims.tile(spec, shapes, solve)
    (batch, heads, tokens, _), (rows, columns) = x.q.shape, next(iter(shapes.values())).shape
    stack = 1 + spec.algorithm.slots
    tiles = Tiles(batch, heads, tokens, size, tokens // size, stack, rows, columns, x.q.dtype, solve)
    scales = residuals.constant(residuals.AFFINE if claims.written_by_algorithm(spec) else residuals.key(spec.bias))
    count = split.segments(tiles, scales, split.processors(x.q.device))
    return count, tiles.m // count * size


def _segments(
    spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, solve: bool, count: int
) -> tuple[Tensor, MemoryState]:
    from miras.kernels._matrix import split

    side_by_side = x.map(lambda t: _beside(t, count))
    given, start = operands(spec, shapes, side_by_side, solve), stacked(shapes, state).contiguous()
    tensors = *given[:4], *given[5:-1]  # no step is bounded where all are affine
    y, end, *_ = split.split(*tensors, start, count, given.bias, torch.is_grad_enabled())
    return y.unflatten(0, (-1, count)).movedim(1, 2).flatten(2, 3), unstacked(shapes, state, end)


def _beside(x: Tensor, count: int) -> Tensor:
    """Segments as rows: ``[B, H, S T, ...]`` to ``[B S, H, T, ...]``."""
    return x.unflatten(2, (count, -1)).movedim(2, 1).flatten(0, 1)


def _kernel(whole: Kernel, solve: bool) -> Kernel:
    run = partial(matrix.run, solve=solve, stretch=stretch)
    claim = partial(supports, whole.supports)
    name, cuts = f"split {whole.name}", partial(differs, solve=solve)
    return replace(whole, name=name, supports=claim, run=run, whole=whole, differs=cuts, proven=True)


CHUNKS, TOKENS = _kernel(matrix.CHUNKS, False), _kernel(matrix.TOKENS, True)

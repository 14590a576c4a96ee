"""Memories of one matrix that is an elementwise link of what accumulates, formed at chunk boundaries, where queries read too.

Shapes: B batch, H heads, T tokens in m chunks of C, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes, advance
from miras.kernels import claims, links, matrix
from miras.kernels.table import Kernel, in_pytorch
from miras.spec import MirasSpec
from miras.state import MemoryState

WIDEST = 128
"""Channels of a head that have been tried on a device."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of a matrix under a linear filter of one gradient a token, that read at the anchor."""
    if reason := claims.one_matrix(spec, shapes) or links.supported(spec.retention):
        return reason
    if spec.read != "anchor":
        return f"retention {spec.retention.name!r} reads every token through a link of its own; read='anchor' takes one a chunk"
    rows, columns = next(iter(shapes.values())).shape
    if max(rows, columns) > WIDEST:
        return f"a head of {rows} x {columns} is over {WIDEST} x {WIDEST}"
    return claims.shared(spec, shapes, pairs)


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    from miras.kernels._matrix import linked

    given = matrix.operands(spec, shapes, x, False)
    start = matrix.started(given, shapes, state)
    vectors = given.q, given.k, given.v, given.lr, given.inverse, given.gate
    how = given.bias, links.key(spec.retention), torch.is_grad_enabled()
    level = None
    if "threshold" in x.token:
        ends = _thresholds(spec, state, x)
        level = torch.cat([state.extra["threshold_anchor"][..., None], ends[..., :-1]], -1)
        state = state._replace(extra=state.extra | {"threshold": ends[..., -1]})
    y, end, _ = linked.linked(*vectors, given.into, given.mix, level, start, *how)
    return y, advance(spec, shapes, matrix.unstacked(shapes, state, end), spec.chunk_size)


def _thresholds(spec: MirasSpec, state: MemoryState, x: Inputs) -> Tensor:
    """The threshold at the end of every chunk, ``[B, H, m]``, see `miras.engine.segment.Segment.thresholds`."""
    thresholds = x.token["threshold"].unflatten(2, (-1, spec.chunk_size))
    if not spec.retention.accumulates_threshold:
        return thresholds[..., -1]
    # sums from the end, since of two large ones the difference would be little but rounding
    logs = x.token.get("log_decay", torch.zeros_like(x.token["threshold"]))
    decay = logs.unflatten(2, (-1, spec.chunk_size)).flip(-1).cumsum(-1).flip(-1)
    carried = F.pad(state.extra["threshold"][..., None], (0, thresholds.shape[2] - 1))  # zero, but it has a gradient
    return decay[..., 0].exp() * carried + (F.pad(decay[..., 1:], (0, 1)).exp() * thresholds).sum(-1)


KERNEL = Kernel("matrix with a link", supports, matrix.fits, run, in_pytorch, proven=True)

"""Memories of one matrix that is an elementwise link of what accumulates, formed at chunk boundaries, where queries read too.

Shapes: B batch, H heads, T tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes, context, limited
from miras.kernels import claims, links, matrix
from miras.kernels.table import Kernel, in_pytorch
from miras.spec import MirasSpec
from miras.state import MemoryState


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of a matrix under a linear filter of one gradient a token, that read at the anchor."""
    if reason := claims.one_matrix(spec, shapes) or links.supported(spec.retention):
        return reason
    if spec.read != "anchor":
        return f"retention {spec.retention.name!r} reads every token through a link of its own; read='anchor' takes one a chunk"
    return claims.shared(spec, shapes, pairs)


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    from miras.kernels import _linked

    given, start = matrix.operands(spec, shapes, x, False), matrix.stacked(shapes, state)
    if given.inverse is not None:
        start = limited(start)
    vectors = given.q, given.k, given.v, given.lr, given.inverse, given.gate
    how = given.bias, links.key(spec.retention), torch.is_grad_enabled()
    y, end, _ = _linked.linked(*vectors, given.into, given.mix, start.contiguous(), *how)
    state = matrix.unstacked(shapes, state, end)
    memory = {
        n: spec.retention.commit(a, context(n, shapes[n], state.memory, state.extra, None, tokens=False))
        for n, a in state.memory.items()
    }
    return y, state._replace(memory=memory, anchor=memory)


KERNEL = Kernel("matrix with a link", supports, matrix.fits, run, in_pytorch)

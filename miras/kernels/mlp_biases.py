"""Perceptrons of two matrices with a fast bias after each: TTT-MLP.

Shapes: B batch, H heads, T tokens in N chunks of C, J = 1 + K memory and slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.algorithms import MiniBatch
from miras.architectures import MLP
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.weights import Shapes
from miras.kernels import mlp, normed, residuals
from miras.kernels.table import Kernel, in_pytorch
from miras.spec import MirasSpec
from miras.state import MemoryState


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` computes without the biases, and mini-batches."""
    a = spec.architecture
    if not isinstance(a, MLP) or a.depth != 2 or not a.bias:
        return f"architecture {a.name!r} is not a perceptron of two matrices with fast biases"
    if a.affine:
        return "the norm has a fast gain and shift"
    return covered(spec, shapes, pairs)


def covered(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """None, or why chunks of a perceptron of two matrices and vectors are not computed; the vectors do not matter."""
    from miras.engine import plan

    batches = isinstance(spec.algorithm, MiniBatch)
    if reason := plan.filtered(spec, pairs, batches) or plan.direct(spec) or plan.factored(spec, shapes, pairs):
        return reason
    if not batches and spec.algorithm.slots > 1:
        return f"algorithm {spec.algorithm.name!r} keeps {spec.algorithm.slots} slots; there is room for one"
    return mlp.tiled(spec, shapes) or residuals.supported(spec.bias)


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    if spec.algorithm.settles:
        return mini_batches(spec, shapes, state, x)
    return mlp.chunks(spec, shapes, state, x, mlp.readers(spec, x))


def mini_batches(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """Slots hold what the chunk at hand has summed up: only those of the last chunk are seen, and formed beside its memory."""
    seen, early, answers = normed.readers(spec, x), x.length - spec.chunk_size, []
    state = state._replace(slots={})
    if early:
        first, x = x.split([early, spec.chunk_size])
        y, state = mlp.chunks(spec, shapes, state, first, [t[:, :, :-1] for t in seen])
        answers.append(y)
    rows, pairs, into, mix = (t[:, :, -1:] for t in seen)
    beside = [F.pad(rows, (0, 0, 0, 1)), pairs, torch.cat([into, torch.ones_like(into)], -2), F.pad(mix, (0, 1, 0, 1))]
    empty = {n: torch.zeros_like(w).unsqueeze(2) for n, w in state.memory.items()}
    y, state = mlp.chunks(spec, shapes, state._replace(slots=empty), x, beside)
    last = algorithm_gates(spec, x)["reader"][:, :, -1, None]
    slots = {n: torch.cat([s, last.reshape(*last.shape, *[1] * (s.dim() - 3)) * s], 2) for n, s in state.slots.items()}
    return torch.cat([*answers, y], 2), state._replace(slots=slots)


KERNEL = Kernel("perceptron with biases", supports, mlp.fits, run, in_pytorch, proven=True)

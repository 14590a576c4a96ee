"""Gated perceptrons: SwiGLU and the like, three matrices, whole chunks that share an anchor.

Shapes: B batch, H heads, T tokens in N chunks of C, J = 1 + K memory and slots, I, F and O key, hidden and value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.architectures import GatedMLP
from miras.engine import fused
from miras.engine.problem import Inputs
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes
from miras.kernels import assembler, mlp, residuals
from miras.kernels.table import Dims, Kernel, in_pytorch
from miras.spec import MirasSpec
from miras.state import MemoryState


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` computes of two matrices."""
    from miras.engine import plan

    if not isinstance(spec.architecture, GatedMLP):
        return f"architecture {spec.architecture.name!r} is not a gated perceptron"
    if reason := plan.filtered(spec, pairs) or plan.direct(spec) or plan.factored(spec, shapes, pairs):
        return reason
    if spec.algorithm.slots > 1:
        return f"algorithm {spec.algorithm.name!r} keeps {spec.algorithm.slots} slots; there is room for one"
    return mlp.tiled(spec, shapes) or residuals.supported(spec.bias)


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """As of the perceptron, with an assembler that gets tiles of 32 hidden columns right."""
    return mlp.fits(device, dtype, dims) or assembler.missing(device)


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    from miras.kernels._gated import ops
    from miras.kernels._mlp import launch

    assert isinstance(spec.architecture, GatedMLP)
    batch, heads = x.q.shape[:2]
    w1 = torch.stack([fused.stack(state, n) for n in ("gate", "up")], 3)
    gate = next(iter(bias_gates(spec, x.pair).values()), None)
    inverse, seen = x.pair.get("inverse_bound"), mlp.readers(spec, x)
    tensors = [x.q, x.k, x.v, x.pair["lr"], inverse, *seen, w1, fused.stack(state, "down"), gate]
    given = [None if t is None else t.flatten(0, 1).contiguous() for t in tensors]
    recipe = launch.key(spec.architecture, spec.bias)
    y, *_, w1, w2 = ops.gated_perceptron(*given, recipe, torch.is_grad_enabled())
    ends = {"gate": w1[:, :, 0], "up": w1[:, :, 1], "down": w2}
    whole = {n: ends[n].unflatten(0, (batch, heads)) for n in state.memory}
    memory = {n: w[:, :, 0] for n, w in whole.items()}
    slots = {n: w[:, :, 1:] for n, w in whole.items()} if state.slots else {}
    return y.unflatten(0, (batch, heads)), state._replace(memory=memory, slots=slots, anchor=memory)


KERNEL = Kernel("gated perceptron", supports, fits, run, in_pytorch, proven=True)

"""Memories of two matrices with an activation between: whole chunks that share an anchor.

Shapes: B batch, H heads, T tokens in N chunks of C, J = 1 + K memory and slots, I, F and O key, hidden and value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.architectures import MLP
from miras.engine import fused
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes
from miras.kernels import matrix, residuals
from miras.kernels.table import Dims, Kernel, interpreted, triton_runs
from miras.spec import MirasSpec
from miras.state import MemoryState

SIZES = (16, 32, 64)
"""Chunks and widths of a head whose tiles fit into a program."""

HIDDEN = 512
"""Largest hidden width: programs of 32 columns wait for each other, so a device must hold all of a head's at once."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What the written-out PyTorch path covers, in sizes that fill a tile, with at most one slot."""
    return computes(spec, shapes, pairs) or tiled(spec, shapes)


def computes(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """The same in any sizes."""
    from miras.engine import plan

    if reason := plan.fused(spec, shapes, pairs):
        return reason
    if spec.algorithm.slots > 1:
        return f"algorithm {spec.algorithm.name!r} keeps {spec.algorithm.slots} slots; there is room for one"
    return residuals.supported(spec.bias)


def tiled(spec: MirasSpec, shapes: Shapes, chunks: tuple[int, ...] = SIZES) -> str | None:
    """None, or which size fills no tile."""
    hidden = next(iter(shapes.values())).shape[1]
    if hidden > HIDDEN:
        return f"the hidden width {hidden} is over {HIDDEN}"
    if spec.chunk_size not in chunks:
        return f"chunk_size {spec.chunk_size} is not one of {chunks}"
    return None


def fits(device: torch.device, dtype: torch.dtype, dims: Dims, widths: tuple[int, ...] = SIZES) -> str | None:
    """Widths that fill a tile."""
    if reason := triton_runs(device, dtype):
        return reason
    if dims.key not in widths or dims.value not in widths:
        return f"a head is {dims.key} x {dims.value}, not of widths {widths}"
    if dtype == torch.float32 and max(dims) > 32 and not interpreted():
        return f"products of heads of {max(dims)} in float32 take more registers than there are; bfloat16 and float16 do not"
    return None


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    return chunks(spec, shapes, state, x, readers(spec, x))


def tail(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """Fewer tokens than a chunk, from a boundary: a chunk whose other tokens read and write nothing."""
    more = spec.chunk_size - x.length
    rows, pairs, into, mix = readers(spec, x)
    rows, into = (F.pad(t[..., : x.length], (0, more)) for t in (rows, into))
    pairs = F.pad(pairs[..., : x.length, : x.length], (0, more, 0, more))
    y, after = chunks(spec, shapes, state, _longer(spec, x, more), [rows, pairs, into, mix])
    return y[:, :, : x.length], after._replace(anchor=state.anchor, phase=(x.length,) * state.batch)


def _longer(spec: MirasSpec, x: Inputs, more: int) -> Inputs:
    """With tokens of zeros; thresholds are one there, since some residuals divide by them."""

    def longer(t: Tensor, value: float = 0.0) -> Tensor:
        return F.pad(t, (*(0, 0) * (t.dim() - 3), 0, more), value=value)

    filled = x.map(longer)
    return filled._replace(pair=filled.pair | {g: longer(x.pair[g], 1.0) for g in spec.bias.gates})


def readers(spec: MirasSpec, x: Inputs, size: int | None = None) -> list[Tensor]:
    """Rows, pairs, into and mix of all chunks, or of blocks of that size."""
    seen = matrix.readers(spec, algorithm_gates(spec, x), x, size or spec.chunk_size, solve=False)
    return [seen.rows, seen.pairs, seen.into, seen.mix]


def chunks(
    spec: MirasSpec,
    shapes: Shapes,
    state: MemoryState,
    x: Inputs,
    seen: list[Tensor],
    link: str = "0",
    blocks: int = 1,
    clusters: bool = False,
) -> tuple[Tensor, MemoryState]:
    """Whole chunks, each of some blocks, with given coefficients of these.

    Tensors may be padded beyond ``shapes``, see `miras.kernels.mlp_padded`.

    ``link``, which `miras.kernels._mlp.launch.Link.of` reads, makes weights of memories; ``clusters`` says who scans.
    """
    from miras.kernels._mlp import launch, ops

    assert isinstance(spec.architecture, MLP)
    batch, heads = x.q.shape[:2]
    stacks = {n: fused.stack(state, n) for n in state.memory}
    biases = torch.cat([stacks["b_1"], stacks["b_2"]], -1) if spec.architecture.bias else None
    gains = torch.cat([stacks["gain"], stacks["shift"]], -1) if spec.architecture.affine else None
    gate = next(iter(bias_gates(spec, x.pair).values()), None)
    w1, w2, inverse = stacks["w_1"], stacks["w_2"], x.pair.get("inverse_bound")
    tensors = [x.q, x.k, x.v, x.pair["lr"], inverse, *seen, w1, w2, gate, biases, gains]
    given = [None if t is None else t.flatten(0, 1).contiguous() for t in tensors]
    recipe = launch.key(spec.architecture, spec.bias, link, blocks, shapes["w_2"].shape[1], clusters)
    y, *_, w1, w2, ends, gain_ends = ops.perceptron(*given, recipe, torch.is_grad_enabled())
    found = {"w_1": w1, "w_2": w2}
    if biases is not None:
        found["b_1"], found["b_2"] = ends.split([w1.shape[-1], w2.shape[-1]], -1)
    if gains is not None:
        found["gain"], found["shift"] = gain_ends.chunk(2, -1)
    whole = {n: found[n].unflatten(0, (batch, heads)) for n in state.memory}
    memory = {n: w[:, :, 0] for n, w in whole.items()}
    slots = {n: w[:, :, 1:] for n, w in whole.items()} if state.slots else {}
    return y.unflatten(0, (batch, heads)), state._replace(memory=memory, slots=slots, anchor=memory)


def one(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A single token, see `miras.kernels.step`."""
    from miras.kernels import step

    return step.perceptron(spec, shapes, state, x)


KERNEL = Kernel("perceptron", supports, fits, run, one, tail=tail, proven=True)

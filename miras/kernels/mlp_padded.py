"""Perceptrons whose heads are no tile of a kernel (48 channels, say), padded with zeros to the next, which changes no number.

Zeros in queries, keys, values and weights stay zeros: activations keep them, where prediction and value are zero there is no error,
and squared norms do not see them. Only means count channels: the layer norm is told how many there are (``WIDTH``), as is the norm of
a link, and a softmax, which would give weight to what is not there. Gradients are those of padding and slicing.

Shapes: B batch, H heads, T tokens, I, F and O key, hidden and value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes
from miras.kernels import mlp, mlp_biases, mlp_links, residuals
from miras.kernels.table import Dims, Kernel, Run, in_pytorch
from miras.retentions import KLDecay
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights

INNER = (mlp.KERNEL, mlp_links.KERNEL, mlp_biases.KERNEL)
"""Kernels of padded heads."""

COLUMNS = 32
"""What divides a padded hidden width: tiles of fewer columns would be more programs that wait for each other."""

Sizes = Mapping[str, tuple[int, ...]]


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What one of the inner kernels computes, in widths that it does not take, where zeros stay zeros."""
    if _inner(spec, shapes, pairs) is None:
        return "no kernel that takes padded heads computes this"
    i, _, o = _widths(shapes)
    if max(i, o) > max(mlp.SIZES):
        return f"a head of {i} x {o} is over {max(mlp.SIZES)} x {max(mlp.SIZES)}"
    if i in mlp.SIZES and o in mlp.SIZES:
        return f"a head of {i} x {o} needs no padding"
    if isinstance(spec.retention, KLDecay) and shapes["w_1"].shape[1] % COLUMNS:
        return f"retention {spec.retention.name!r} would give weight to padding of the hidden width"
    if spec.bias.triton_residual is not None:
        return f"bias {spec.bias.name!r} has a triton_residual of its own, which may see padding"
    return residuals.supported(spec.bias)


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """Whether the inner kernels run with the padded heads."""
    return mlp.fits(device, dtype, Dims(*map(_tile, dims)))


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    return _by(lambda kernel: kernel.run, spec, shapes, state, x)


def tail(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """Fewer tokens than a chunk, from a boundary."""
    return _by(lambda kernel: kernel.tail, spec, shapes, state, x)


def one(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A single token."""
    return _by(lambda kernel: kernel.one, spec, shapes, state, x)


def _by(
    part: Callable[[Kernel], Run | None], spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs
) -> tuple[Tensor, MemoryState]:
    """By the inner kernel; where it has nothing for this, PyTorch sees no padding."""
    kernel = _inner(spec, shapes, x.pairs)
    assert kernel is not None
    go = part(kernel)
    if go is None or go is in_pytorch:
        return in_pytorch(spec, shapes, state, x)
    return _in_between(go, spec, shapes, state, x)


def _in_between(go: Run, spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """What is computed with everything padded, but for the shapes."""
    y, after = go(spec, shapes, _resized(state, _padded(shapes)), _wide(spec, x))
    return y[..., : x.v.shape[-1]], _resized(after, {n: w.shape for n, w in shapes.items()})


def _inner(spec: MirasSpec, shapes: Shapes, pairs: int) -> Kernel | None:
    return next((kernel for kernel in INNER if kernel.supports(spec, shapes, pairs) is None), None)


def _widths(shapes: Shapes) -> tuple[int, int, int]:
    """Of keys, hidden and values."""
    (i, f), (_, o) = shapes["w_1"].shape, shapes["w_2"].shape
    return i, f, o


def _padded(shapes: Shapes) -> Sizes:
    """Of all weights."""
    i, f, o = _widths(shapes)
    i, f, o = _tile(i), -(-f // COLUMNS) * COLUMNS, _tile(o)
    return {"w_1": (i, f), "w_2": (f, o), "b_1": (f,), "b_2": (o,)}


def _tile(width: int) -> int:
    """The next width of a head that the inner kernels take."""
    return next(size for size in mlp.SIZES if size >= width)


def _wide(spec: MirasSpec, x: Inputs) -> Inputs:
    """Padded tokens. Where there is no value, its threshold is one, since some residuals divide by it."""
    key, value = (_tile(t.shape[-1]) for t in (x.k, x.v))
    gates = {g: _resize(x.pair[g], (value,), 1.0) for g, gate in spec.bias.gates.items() if gate.per == "value"}
    return Inputs(_resize(x.q, (key,)), _resize(x.k, (key,)), _resize(x.v, (value,)), x.token, x.pair | gates)


def _resized(state: MemoryState, sizes: Sizes) -> MemoryState:
    """The state with weights of those sizes."""

    def each(weights: Weights) -> Weights:
        return {n: _resize(w, sizes[n]) for n, w in weights.items()}

    memory = each(state.memory)
    anchor = memory if state.anchor is state.memory else each(state.anchor)
    return state._replace(memory=memory, slots=each(state.slots), anchor=anchor)


def _resize(t: Tensor, sizes: tuple[int, ...], value: float = 0.0) -> Tensor:
    """Padded behind its last axes, or sliced, to those sizes."""
    ends = [(0, size - had) for size, had in zip(reversed(sizes), reversed(t.shape), strict=False)]
    return F.pad(t, [n for pair in ends for n in pair], value=value)


KERNEL = Kernel("padded perceptron", supports, fits, run, one, tail=tail, proven=True)

"""Perceptrons with heads and chunks of 64 whose scans are clusters of programs on Hopper, in CUDA: see `miras.kernels.cuda`.

Two programs have a head where `miras.kernels.mlp` has eight, and hand sums round through each other's shared memory. What lies between
the scans is CUDA too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.biases import L2, Dot, Huber, LogCosh
from miras.engine.problem import Inputs
from miras.engine.weights import Shapes
from miras.kernels import cuda, mlp
from miras.kernels.table import Dims, Kernel, constant
from miras.spec import MirasSpec
from miras.state import MemoryState

WIDTH = 64
"""Of heads, and tokens of a chunk."""

HIDDEN = (128, 256)
"""Hidden widths: one or two programs."""

CROWD = 32
"""Heads of all rows from which on clusters scan forward. Fewer leave most of a card idle, and eight programs a head are sooner there
(measured on an H200)."""

BIASES = (Dot, L2, LogCosh, Huber)
"""Those with functions in CUDA."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` computes, in one size and of a few biases."""
    if reason := mlp.supports(spec, shapes, pairs):
        return reason
    (width, hidden), (_, values) = shapes["w_1"].shape, shapes["w_2"].shape
    if not width == values == spec.chunk_size == WIDTH:
        return f"chunks of {spec.chunk_size} and heads of {width} x {values} are not of {WIDTH}"
    if hidden not in HIDDEN:
        return f"the hidden width {hidden} is not one of {HIDDEN}"
    if type(spec.bias) not in BIASES:
        return f"bias {spec.bias.name!r} has no CUDA function"
    return None


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """What `miras.kernels.mlp` says, 16 bits, and a Hopper device with a compiler."""
    if reason := mlp.fits(device, dtype, dims):
        return reason
    if dtype == torch.float32:
        return "products of clusters are of 16 bits"
    return _device(device)


@constant  # it asks the device
def _device(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "the device is not of compute capability 9.0"
    return None if cuda.compiler() is not None else "PyTorch has no NVRTC beside it"


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    return mlp.chunks(spec, shapes, state, x, mlp.readers(spec, x), clusters=True)


KERNEL = Kernel(
    "perceptron in clusters", supports, fits, run, mlp.one, tail=mlp.tail, whole=mlp.KERNEL, crowd=CROWD, proven=True
)

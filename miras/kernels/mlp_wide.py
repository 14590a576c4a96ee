"""Perceptrons of two matrices with heads of 128 channels, or chunks of 128 and 256 tokens in blocks of 64.

See `miras.kernels._mlp.blocks` and `miras.kernels._mlp.halves`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes
from miras.kernels import assembler, mlp
from miras.kernels.table import Dims, Kernel, constant
from miras.spec import MirasSpec
from miras.state import MemoryState

CHUNKS = (*mlp.SIZES, 128, 256)
"""Tokens of a chunk."""

WIDTHS = (*mlp.SIZES, 128)
"""Widths of a head."""

BLOCK = max(mlp.SIZES)
"""Tokens of a block."""

TOGETHER = mlp.HIDDEN // 32
"""Programs of a head that wait for each other, each with 32 hidden columns: one on a multiprocessor fits always."""

SHARED = 128 * 1024
"""Bytes of shared memory that a program of compute capability 9.0 takes at most, as `benchmarks.sm90_mlp` finds."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` leaves: larger chunks, wider heads."""
    if reason := mlp.computes(spec, shapes, pairs) or mlp.tiled(spec, shapes, CHUNKS):
        return reason
    if spec.chunk_size in mlp.SIZES and max(shapes["w_1"].shape[0], shapes["w_2"].shape[1]) <= BLOCK:
        return f"kernel {mlp.KERNEL.name!r} computes this"
    return None


def fits(device: torch.device, dtype: torch.dtype, dims: Dims) -> str | None:
    """Widths that fill a tile, on a device that runs all programs of a head at once, with a trusted assembler."""
    return mlp.fits(device, dtype, dims, WIDTHS) or _room(device) or assembler.missing(device)


@constant  # it asks the device
def _room(device: torch.device) -> str | None:
    """None, or what a device has too little of."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    if found.multi_processor_count < TOGETHER:
        return f"the device has {found.multi_processor_count} multiprocessors for {TOGETHER} programs that wait for each other"
    if found.shared_memory_per_block_optin < SHARED:  # pyright: ignore[reportAttributeAccessIssue]
        return f"a program takes up to {SHARED >> 10} KiB of shared memory, more than the device has"
    return None


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    size = min(spec.chunk_size, BLOCK)
    return mlp.chunks(spec, shapes, state, x, mlp.readers(spec, x, size), blocks=spec.chunk_size // size)


KERNEL = Kernel("wide perceptron", supports, fits, run, mlp.one, proven=True)

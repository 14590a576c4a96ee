"""Kernels: a table that is tried, in order, before the PyTorch paths. Triton is imported when one first runs.

A kernel never changes a number beyond the tolerance that `miras.testing` states for its dtype.
"""

from __future__ import annotations

import torch

from miras.engine.weights import Shapes
from miras.kernels import matrix, mlp, mlp_links
from miras.kernels.table import Dims, Kernel, interpreted
from miras.spec import MirasSpec

__all__ = ["KERNELS", "Dims", "Kernel", "choose", "claimed"]

KERNELS: tuple[Kernel, ...] = (matrix.TOKENS, matrix.CHUNKS, mlp.KERNEL, mlp_links.KERNEL)
"""All kernels, the fastest first."""


def claimed(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """None if some kernel computes the spec, else what each has against it."""
    reasons = [k.supports(spec, shapes, pairs) for k in KERNELS]
    if None in reasons:
        return None
    return "; ".join(f"{k.name}: {reason}" for k, reason in zip(KERNELS, reasons, strict=True))


def choose(
    spec: MirasSpec,
    shapes: Shapes,
    pairs: int,
    dims: Dims,
    where: tuple[torch.device, torch.dtype] | None,
    forced: bool = False,
) -> Kernel | str:
    """The first kernel that computes the spec there, or why none does.

    Args:
        spec: the memory.
        shapes: its fast weights.
        pairs: (key, value) pairs a token.
        dims: widths of a head.
        where: device and dtype of the inputs; None if they are not known.
        forced: whether the kernel was asked for: only then is Triton's interpreter good enough, or a kernel not yet proven.
    """
    if reason := claimed(spec, shapes, pairs):
        return reason
    able = [k for k in KERNELS if k.supports(spec, shapes, pairs) is None]
    if where is None or (where[0].type != "cuda" and not (forced and interpreted())):
        return f"{able[0].name} needs a CUDA device"
    refusals = [k.fits(*where, dims) for k in able]
    for kernel, reason in zip(able, refusals, strict=True):
        if reason is None and (kernel.proven or forced):
            return kernel
        if reason is None:
            return f"{kernel.name} has not passed its tests on a device as it is here; ask for it with path='kernel'"
    return "; ".join(f"{k.name}: {reason}" for k, reason in zip(able, refusals, strict=True))

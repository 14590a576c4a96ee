"""Kernels: a table that is tried, in order, before the PyTorch paths. Triton is imported when one first runs.

A kernel never changes a number beyond the tolerance that `miras.testing` states for its dtype. The modules here say what they
compute and where; what they launch stands in folders by family, and `cuda` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from miras.engine.weights import Shapes
from miras.kernels import (
    channels,
    clusters,
    linked,
    matrix,
    mlp,
    mlp_biases,
    mlp_gains,
    mlp_gated,
    mlp_links,
    mlp_padded,
    mlp_wide,
    normed,
    replays,
    split,
    values,
)
from miras.kernels.table import Dims, Kernel, interpreted
from miras.spec import MirasSpec

__all__ = ["KERNELS", "Dims", "Kernel", "choose", "claimed"]

KERNELS: tuple[Kernel, ...] = (
    split.TOKENS,
    split.CHUNKS,
    matrix.TOKENS,
    matrix.CHUNKS,
    mlp_padded.KERNEL,
    clusters.KERNEL,
    mlp.KERNEL,
    mlp_wide.KERNEL,
    mlp_links.KERNEL,
    mlp_biases.KERNEL,
    mlp_gains.KERNEL,
    mlp_gated.KERNEL,
    normed.KERNEL,
    channels.TOKENS,
    channels.CHUNKS,
    values.TOKENS,
    values.CHUNKS,
    linked.KERNEL,
    replays.MATRIX,
    replays.PERCEPTRON,
)
"""All kernels, the fastest first."""


def claimed(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """None if some kernel computes the spec, else what each has against it."""
    reasons = {k.name: k.supports(spec, shapes, pairs) for k in KERNELS if k.whole is None}
    if None in reasons.values():
        return None
    return _together(reasons)


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
        forced: whether the kernel was asked for: only then is Triton's interpreter good enough, or a kernel not yet proven where no
            other fits.
    """
    if reason := claimed(spec, shapes, pairs):
        return reason
    able = [k for k in KERNELS if k.supports(spec, shapes, pairs) is None]
    if where is None or (where[0].type != "cuda" and not (forced and interpreted())):
        return f"{next(k for k in able if k.whole is None).name} needs a CUDA device"
    refusals = {k: k.fits(*where, dims) for k in able}
    fitting = [k for k, reason in refusals.items() if reason is None]
    for kernel in fitting:
        if kernel.proven:
            return kernel
    if fitting and forced:
        return fitting[0]
    if fitting:
        return f"{fitting[0].name} has not passed its tests on a device as it is here; ask for it with path='kernel'"
    return _together({k.name: reason for k, reason in refusals.items() if k.whole is None})


def _together(reasons: Mapping[str, str | None]) -> str:
    """Kernels with the same reason in one breath."""
    names: dict[str | None, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(alike)}: {reason}" for reason, alike in names.items())

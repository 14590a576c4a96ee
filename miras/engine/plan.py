"""Which engine computes a spec, and why not a faster one. The choice never changes a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from miras.architectures import MLP
from miras.engine.weights import Shapes, has_channel
from miras.kernels import Dims, Kernel, choose, claimed
from miras.spec import MirasSpec

Path = Literal["kernel", "exact", "fused", "factored", "materialised", "reference", "picard"]
PATHS: tuple[Path, ...] = get_args(Path)

TILE = 32
"""Tokens a tile holds where the chunk does not limit it: the quickest of 16 to 128 where it was measured."""


@dataclass(frozen=True)
class Plan:
    """A path, the tokens it takes at a time, and for every faster path the reason it cannot be used.

    Attributes:
        path: the engine.
        tile: the tokens it takes at a time.
        refused: for every path that cannot compute the spec, why.
        tolerance: of ``picard``.
        kernel: the kernel of path ``kernel``.
        around: the path of tokens that path ``kernel`` leaves over.
    """

    path: Path
    tile: int
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    tolerance: float = 0.0
    kernel: Kernel | None = None
    around: Path = "factored"


def plan(
    spec: MirasSpec,
    shapes: Shapes,
    pairs: int = 1,
    path: Path | None = None,
    tolerance: float | None = None,
    dims: Dims | None = None,
    where: tuple[torch.device, torch.dtype] | None = None,
) -> Plan:
    """The first path, from the fastest, that claims the spec; or the one asked for, if it does.

    Args:
        spec: the memory.
        shapes: its fast weights.
        pairs: (key, value) pairs a token.
        path: forces a path; ``picard`` is never chosen unasked.
        tolerance: of ``picard``.
        dims: widths of a head.
        where: device and dtype of the inputs; kernels are chosen only if both are given.
    """
    found = choose(spec, shapes, pairs, dims, where, path == "kernel") if dims else "the widths are not known"
    reasons: dict[Path, str | None] = {
        "kernel": found if isinstance(found, str) else None,
        "exact": exact(spec, shapes, pairs),
        "fused": fused(spec, shapes, pairs),
        "factored": factored(spec, shapes, pairs),
        "materialised": None,
        "reference": None,
    }
    if path == "picard":
        reasons["picard"] = picard(spec, shapes, pairs)
    chosen: Path
    if path is not None:
        if path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(PATHS)}; got {path!r}")
        if reason := reasons[path]:
            raise ValueError(f"path {path!r} cannot compute this spec: {reason}")
        chosen = path
    else:
        chosen = next(p for p in PATHS if not reasons[p])
    around: Path = next(p for p in PATHS[1:] if not reasons[p])
    by_tiles = (around if chosen == "kernel" else chosen) in ("exact", "picard")
    best = found if isinstance(found, Kernel) and chosen == "kernel" else None
    refused: dict[Path, str] = {p: r for p, r in reasons.items() if r}
    return Plan(chosen, TILE if by_tiles else spec.chunk_size, refused, tolerance or 0.0, best, around)


def free_of_chunks(spec: MirasSpec) -> bool:
    """Whether the gradient does not depend on the anchor, so that neither do the numbers on the chunk size."""
    return (
        spec.architecture.is_linear
        and spec.bias.residual_is_constant
        and not spec.algorithm.changes_error
        and not spec.algorithm.settles
        and spec.retention.link_is_identity
        and spec.read != "anchor"
    )


def kernel(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """A Triton kernel of the table in `miras.kernels` computes the spec, on a device and in a dtype that fit it."""
    return claimed(spec, shapes, pairs)


def factored(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Reads that never build a token's weights need weights that are linear in the factors."""
    if any(w.kind == "tensor" for w in shapes.values()):
        return f"architecture {spec.architecture.name!r} has weights that are not matrices or vectors"
    if not spec.algorithm.direction_is_identity:
        return f"algorithm {spec.algorithm.name!r} turns every token's update nonlinearly"
    if spec.read != "anchor" and not spec.retention.link_is_identity and spec.retention.link_at != "chunk":
        return f"retention {spec.retention.name!r} reads every token through a nonlinear link"
    if spec.retention.pulls:
        return f"retention {spec.retention.name!r} turns every update"
    channels = [
        n for n, w in shapes.items() if "log_decay" in spec.gates and has_channel(w, spec.gates["log_decay"].per)
    ]
    if channels and (spec.algorithm.slots or spec.algorithm.lr_is_row or spec.algorithm.window > 1 or pairs > 1):
        return "a decay per channel has no matrix form together with slots, windows or several pairs a token"
    if channels and spec.gates["log_decay"].per == "entry":
        return "a decay per entry has no matrix form"
    if channels and spec.retention.link_at == "chunk":
        return "a decay per channel has no matrix form under a frozen normaliser"
    return None


def fused(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """The written-out backward pass covers a perceptron of two matrices under a filter of one gradient a token."""
    return perceptron(spec, pairs) or direct(spec) or factored(spec, shapes, pairs)


def direct(spec: MirasSpec) -> str | None:
    """Tokens read what has accumulated, and the anchor is where their chunk begins."""
    if not spec.retention.link_is_identity or spec.retention.gradient_at == "decayed":
        return f"retention {spec.retention.name!r} reads through a link or moves the anchor"
    if spec.read != "after" or spec.anchor_lag:
        return "read and anchor_lag are not the default"
    return None


def perceptron(spec: MirasSpec, pairs: int) -> str | None:
    """Two matrices with nothing beside them, under a filter of one gradient a token with gates per head."""
    architecture = spec.architecture
    if not isinstance(architecture, MLP) or architecture.depth != 2 or architecture.bias or architecture.affine:
        return f"architecture {architecture.name!r} is not a perceptron of two matrices and nothing else"
    return filtered(spec, pairs)


def filtered(spec: MirasSpec, pairs: int, settles: bool = False) -> str | None:
    """A filter of one gradient a token with gates per head; ``settles``: it may act at the end of a chunk."""
    algorithm = spec.algorithm
    if (
        not algorithm.direction_is_identity
        or algorithm.changes_error
        or (algorithm.settles and not settles)
        or algorithm.lr_is_row
        or algorithm.window > 1
        or pairs > 1
    ):
        return f"algorithm {algorithm.name!r} is not a linear filter of one gradient a token"
    if any(spec.gates[g].per != "head" for g in ("lr", "log_decay") if g in spec.gates):
        return "a gate per channel"
    return None


def exact(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """A triangular solve needs one matrix, an error affine in the prediction, and coefficients shared by value channels."""
    if spec.chunk_size != 1 and not free_of_chunks(spec):
        return f"chunk_size is {spec.chunk_size}, not 1, and the gradient depends on the anchor"
    if not spec.architecture.is_linear:
        return f"architecture {spec.architecture.name!r} is not linear in one matrix"
    if not spec.bias.residual_is_affine:
        return f"bias {spec.bias.name!r} has a residual that is not affine in the prediction"
    if not spec.retention.link_is_identity:
        return f"retention {spec.retention.name!r} has a link"
    if not spec.algorithm.direction_is_identity or spec.algorithm.lr_is_row or spec.algorithm.window > 1:
        return f"algorithm {spec.algorithm.name!r} is not a linear filter of one gradient a token"
    if spec.algorithm.settles:
        return f"algorithm {spec.algorithm.name!r} acts at chunk ends"
    if pairs > 1:
        return "several pairs a token are written at once"
    if any(spec.gates[g].per == "value" for g in ("lr", "log_decay") if g in spec.gates):
        return "a gate per value channel gives every channel its own triangular system"
    return factored(spec, shapes, pairs)


def picard(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Sweeps read token t at the factored A_{t-1}: the anchor must be the previous weights, and they must be linear in the factors."""
    if spec.chunk_size != 1:
        return f"chunk_size is {spec.chunk_size}, not 1; with a frozen anchor nothing has to be iterated"
    if not spec.retention.link_is_identity:
        return f"retention {spec.retention.name!r} has a link"
    if spec.retention.gradient_at == "decayed":
        return "the gradient is taken at a decayed state"
    plain = not (spec.algorithm.lr_is_row or spec.algorithm.linear_only or spec.algorithm.settles)
    if not plain or spec.algorithm.window > 1 or pairs > 1:
        return f"algorithm {spec.algorithm.name!r} is not a plain filter of one gradient a token"
    return factored(spec, shapes, pairs)

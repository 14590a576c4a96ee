"""What a memory is called with: checked, and laid out as engines take it.

Shapes: B batch, T tokens, H heads, N pairs a token, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from miras.engine.problem import Inputs, bounded
from miras.gates import Gate, channels
from miras.packing import document_bounds
from miras.spec import MirasSpec
from miras.state import Weights


def inputs(
    spec: MirasSpec, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor | float], dtype: torch.dtype
) -> Inputs:
    """What engines take: heads before tokens, gates in ``dtype``, learning rates under the step bound."""
    return bounded(spec, laid_out(spec, q, k, v, gates, dtype))


def laid_out(
    spec: MirasSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Mapping[str, Tensor | float],
    dtype: torch.dtype | None = None,
) -> Inputs:
    """Engine layout: heads before tokens, pairs flattened into tokens; gates in ``dtype``, or that of q."""
    declared = spec.gates
    if missing := declared.keys() - gates.keys():
        raise ValueError(
            f"this spec needs the gates {sorted(declared)}; {sorted(missing)} is missing from {sorted(gates)}"
        )
    if unknown := gates.keys() - declared.keys():
        raise ValueError(f"this spec has no gates {sorted(unknown)}; it needs {sorted(declared)}")
    batch, length, heads, d_key = q.shape
    pairs = k.shape[3] if k.dim() == 5 else 1
    weights = len(spec.architecture.shapes(d_key, v.shape[-1]))
    widths = channels(d_key, v.shape[-1], weights)
    token: Weights = {}
    pair: Weights = {}
    for name, gate in declared.items():
        of_pair = name in spec.pair_gates
        n = (pairs,) if of_pair and pairs > 1 else ()
        shape = (batch, length, heads, *n, *widths[gate.per])
        tensor = _broadcast(name, gate, gates[name], shape, n, q, dtype or q.dtype)
        tensor = tensor.movedim(2, 1)
        (pair if of_pair else token)[name] = tensor.flatten(2, 3) if n else tensor
    flat = (lambda t: t.movedim(2, 1).flatten(2, 3)) if k.dim() == 5 else (lambda t: t.movedim(2, 1))
    return Inputs(q.movedim(2, 1), flat(k), flat(v), token, pair)


def _broadcast(
    name: str,
    gate: Gate,
    value: Tensor | float,
    shape: tuple[int, ...],
    n: tuple[int, ...],
    like: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    # a number is made on the device, not copied: a graph that is being recorded can take nothing from the host
    made = value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=like.device)
    tensor = made.to(like.device, dtype)
    if n and tensor.dim() == len(shape) - 1:
        tensor = tensor.unsqueeze(3)  # the same gate for all pairs of a token
    if tensor.dim() not in (0, len(shape)) or any(a not in (1, b) for a, b in zip(tensor.shape, shape, strict=False)):
        raise ValueError(
            f"gate {name!r} is per {gate.per}: pass a number or a tensor of shape {shape}, got {tuple(tensor.shape)}"
        )
    if checkable(like) and not all_finite(_outside(gate, name, tensor)):
        bound = "at most 0, being a log" if name.startswith("log_") else "at least 0"
        raise ValueError(f"gate {name!r} must be finite and {bound}")
    return tensor.expand(shape)


def _outside(gate: Gate, name: str, value: Tensor) -> Tensor:
    """The gate, with NaN where it leaves its range."""
    if gate.squash == "identity":
        return value
    wrong = value > 0 if name.startswith("log_") else value < 0
    return torch.where(wrong, torch.nan, value)


def check(spec: MirasSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Raises a `ValueError` that says what does not fit."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        wanted = "[B, T, H, D]" if name == "q" else "[B, T, H, D] or [B, T, H, N, D]"
        if x.dim() not in ((4,) if name == "q" else (4, 5)):
            raise ValueError(f"{name} must be {wanted}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.shape[:3] != q.shape[:3]:
            raise ValueError(f"{name} has batch, tokens and heads {tuple(x.shape[:3])}; q has {tuple(q.shape[:3])}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"k and v must agree up to their width, got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"q and k must have the same width, got {q.shape[-1]} and {k.shape[-1]}")
    pairs, steps = (k.shape[3] if k.dim() == 5 else 1), spec.algorithm.steps
    if steps > 1 and pairs != steps:
        raise ValueError(
            f"algorithm {spec.algorithm.name!r} takes {steps} steps a token: k and v must be [B, T, H, {steps}, D]"
        )
    if pairs > 1 and spec.algorithm.state(1, q.new_zeros(1, 1)):
        raise ValueError(
            f"algorithm {spec.algorithm.name!r} keeps a second moment and takes one pair a token, got {pairs}"
        )
    if mask is not None and cu_seqlens is not None:
        raise ValueError("pass mask or cu_seqlens, not both")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != q.shape[:2]):
        raise ValueError(f"mask must be a bool tensor {tuple(q.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if cu_seqlens is not None:
        bounds = document_bounds(cu_seqlens)
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens packs documents into one row; got a batch of {q.shape[0]}")
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != q.shape[1] or bounds != sorted(bounds):
            raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens {q.shape[1]}, got {bounds}")
    if checkable(q):
        for name, x in (("q", q), ("k", k), ("v", v)):
            if not all_finite(x):
                raise ValueError(f"{name} holds NaN or infinite numbers")


def checkable(x: Tensor) -> bool:
    """Whether numbers may be looked at: a device would have to be waited for, and a compiler cannot branch on them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def all_finite(x: Tensor) -> bool:
    """Whether every number is finite; yes under vmap, where there is no one answer."""
    try:
        # a finite sum has finite terms, and is ten times cheaper; an infinite one may only have overflowed
        return bool(x.sum().isfinite()) or bool(x.isfinite().all())
    except RuntimeError:
        return True

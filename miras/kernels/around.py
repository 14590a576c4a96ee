"""What surrounds a memory in its layer, in one pass over the bytes each way: the way to the heads, and norm times gate.

Not in the table of `miras.kernels`, since no memory is computed. On a device these run unasked, wherever no mask, no
transform of ``torch.func`` and no second derivative is in the way; there, and everywhere else, PyTorch computes the same.

Shapes: B batch, T tokens, C channels, W taps, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miras import convolution
from miras.engine import fused
from miras.kernels import ahead, trust, verdicts
from miras.kernels.table import triton_runs

WIDEST = 256
"""Channels of a head for which a program has room."""

TAPS = range(2, 9)
"""Widths of a convolution."""

Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Of three tensors. A trial takes those of the call, so that what it compiles is what the call needs."""

How = tuple[bool, bool, bool]
"""Whether heads are activated, whether queries and keys get length one, and whether those are as narrow as the line."""


def heads(
    line: Tensor,
    taps: Tensor | None,
    tail: Tensor | None,
    counts: Sequence[int],
    silu: bool,
    units: bool,
    narrow: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`miras.convolution.heads`, by a kernel where there is one."""
    how = silu, units, narrow
    if taps is None or tail is None or mask is not None or not _heads_fit(line, taps, tail, counts, how):
        return convolution.heads(line, taps, tail, counts, silu, units, narrow, mask)
    from miras.kernels._around import ops

    return ops.heads(line, taps, tail, list(counts), *how)


def gated(y: Tensor, norm: nn.Module, gate: Tensor) -> Tensor | None:
    """``norm(y) * silu(gate)``, ``[B, T, H D]`` in the dtype of ``gate``, from ``y [B, T, H, D]``; None without a kernel."""
    if not isinstance(norm, nn.RMSNorm) or not _usable(y, y.shape[-1]) or triton_runs(gate.device, gate.dtype):
        return None
    if not _gated_right(y.shape[-1], y.device, (y.dtype, norm.weight.dtype, gate.dtype)):
        return None
    from miras.kernels._around import ops

    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    return ops.gated(y, norm.weight, gate, eps)


def slow_gated(y: Tensor, gain: Tensor, gate: Tensor, eps: float) -> Tensor:
    """What the kernel of `gated` computes.

    Args:
        y: ``[B, T, H, D]``.
        gain: ``[D]``.
        gate: ``[B, T, H D]``.
        eps: added to the mean square.

    Returns:
        ``[B, T, H D]`` in the dtype of ``gate``.
    """
    y = F.rms_norm(y.to(gain.dtype), gain.shape, gain, eps)
    return (y.flatten(2) * F.silu(gate)).to(gate.dtype)


def _heads_fit(line: Tensor, taps: Tensor, tail: Tensor, counts: Sequence[int], how: How) -> bool:
    width, where = line.shape[-1] // sum(counts), line.device
    if taps.shape[1] not in TAPS or not line.shape[1] or not _usable(line, width):
        return False
    return _heads_right(width, taps.shape[1], how, where, (line.dtype, taps.dtype, tail.dtype))


def _usable(x: Tensor, width: int) -> bool:
    """On a device that kernels are for, heads of that width, outside of transforms."""
    return on_device(x) and width <= WIDEST and triton_runs(x.device, x.dtype) is None and fused.outside_functorch()


def on_device(x: Tensor) -> bool:
    """Never on a CPU, although Triton's interpreter could."""
    return x.is_cuda


@trust.once
def _heads_right(width: int, taps: int, how: How, device: torch.device, dtypes: Dtypes) -> bool:
    def trial() -> float:
        return heads_error(width, taps, how, device, dtypes)

    where = f"{dtypes}, heads of {width}, {taps} taps"
    worst = verdicts.kept(trial, device, f"heads, {where}, {how}")
    return trust.accepted(worst, "heads", device, where)


@trust.once
def _gated_right(width: int, device: torch.device, dtypes: Dtypes) -> bool:
    where = f"{dtypes}, heads of {width}"
    worst = verdicts.kept(lambda: gated_error(width, device, dtypes), device, f"norm and gate, {where}")
    return trust.accepted(worst, "norm and gate", device, where)


def heads_error(width: int, taps: int, how: How, device: torch.device, dtypes: Dtypes, length: int = 160) -> float:
    """The largest relative error of outputs and gradients, against PyTorch in float32; dtypes of line, taps and tail."""
    from miras.kernels._around import ops

    counts = [4, 4, 4]
    line, *state = (2, length, 12 * width), (12 * width, taps), (2, taps - 1, 12 * width)
    return _error(ops.heads, convolution.heads, (line, *state), dtypes, (counts, *how), device)


def gated_error(width: int, device: torch.device, dtypes: Dtypes, length: int = 160) -> float:
    """The largest relative error of outputs and gradients, against PyTorch in float32; dtypes of answers, gain and gate."""
    from miras.kernels._around import ops

    shapes = (2, length, 4, width), (width,), (2, length, 4 * width)
    return _error(ops.gated, slow_gated, shapes, dtypes, (1e-6,), device)


def _error(
    kernel: Callable[..., Any],
    slow: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Dtypes,
    how: tuple[Any, ...],
    device: torch.device,
) -> float:
    """Of random tensors of these shapes and dtypes."""

    def run(function: Callable[..., Any], numbers: list[Tensor]) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in numbers]
        out = function(*leaves, *how)
        outs = [out] if isinstance(out, Tensor) else list(out)
        g = torch.Generator(device).manual_seed(1)
        grads = [torch.randn(y.shape, device=device, generator=g).to(y.dtype) for y in outs]
        return [*(y.detach() for y in outs), *torch.autograd.grad(outs, leaves, grads)]

    with trust.apart(device):
        g = torch.Generator(device).manual_seed(0)
        numbers = [
            torch.randn(shape, device=device, generator=g).to(dtype)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        wanted = run(slow, [x.detach().float() for x in numbers])
        return trust.largest(ahead.rehearsed(lambda: run(kernel, numbers), device), wanted)

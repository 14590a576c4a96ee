"""What stands in front of a memory: a short convolution, an activation, heads, queries and keys of length one.

Shapes: B batch, T tokens, C channels, W taps, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-3
"""Bounds the gradient at padded, all-zero tokens; vectors longer than it come out with length one."""


def unit(x: Tensor) -> Tensor:
    """Vectors of the last dimension scaled to length one, in float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=SHORTEST)


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
    """Queries, keys and values from the channels that a layer projects.

    Args:
        line: ``[B, T, C]``, the channels of all heads of queries, then of keys, then of values.
        taps: of the convolution, ``[C, W]``, that of the newest token last; None for none.
        tail: ``[B, W - 1, C]``, the tokens before.
        counts: heads of queries, of keys and of values; together they have the C channels.
        silu: whether ``silu`` follows the convolution.
        units: whether queries and keys are scaled to length one.
        narrow: whether they are then rounded to the dtype of ``line``.
        mask: ``[B, T]``, see `causal_conv`.

    Returns:
        Queries, keys and values ``[B, T, H, D]``, and the tail for the next call.
    """
    if taps is not None and tail is not None:
        line, tail = causal_conv(line, taps, tail, mask)
    split = (F.silu(line) if silu else line).unflatten(-1, (sum(counts), -1)).split(list(counts), 2)
    dtype = line.dtype if narrow else torch.promote_types(line.dtype, torch.float32)
    q, k = [unit(x).to(dtype) if units else x for x in split[:2]]
    return q, k, split[2], tail


def causal_conv(x: Tensor, weight: Tensor, tail: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution ``[B, T, C]`` that sees only kept tokens, and the tail for the next call."""
    width = weight.shape[1]
    if mask is None:
        line = torch.cat([tail.to(x.dtype), x], 1)
        y = F.conv1d(line.mT, weight.to(x.dtype)[:, None], groups=weight.shape[0]).mT
        return y, line[:, line.shape[1] - (width - 1) :].to(tail.dtype)
    # kept tokens to the front: they are then neighbours, and what follows cannot reach them
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    y, _ = causal_conv(x.gather(1, order[..., None].expand_as(x)), weight, tail, None)
    y = y.gather(1, torch.argsort(order, dim=1)[..., None].expand_as(y))
    line = torch.cat([tail.to(x.dtype), x.gather(1, order[..., None].expand_as(x))], 1)
    last = mask.sum(1)[:, None] + torch.arange(width - 1, device=x.device)
    return y, line.gather(1, last[..., None].expand(-1, -1, line.shape[2])).to(tail.dtype)

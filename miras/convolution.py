"""The short convolution in front of a memory.

Shapes: B batch, T tokens, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(x: Tensor, weight: Tensor, tail: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution ``[B, T, D]`` that sees only kept tokens, and the tail for the next call."""
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

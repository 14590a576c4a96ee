"""Floating-point operations of a layer whose memory is an MLP of depth 2 with momentum."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import layer


def counted(shape: layer.Shape, projections: int, mode: layer.Mode) -> int:
    """What the mathematics asks for; `projections` is the number of weights every token meets once.

    A token of one head costs 22 d D for the frozen gradients (3 products), the read of weights and
    momentum (4) and their carry (4); 4 C (d + D) for the two causal products inside the chunk; and
    2 C^2 for the filter. A backward pass costs twice its forward; recomputation is not counted.
    """
    d, D, C = shape.head_dim, shape.expansion * shape.head_dim, shape.chunk
    memory = 22 * d * D + 4 * C * (d + D) + 2 * C**2
    token = shape.heads * memory + 2 * projections
    return shape.batch * shape.length * token * (3 if mode == "train" else 1)


def executed(module: nn.Module, shape: layer.Shape, mode: layer.Mode) -> int:
    """What torch's matrix products really do in one call, recomputation included."""
    x = torch.randn(shape.batch, shape.length, shape.dim)
    with FlopCounterMode(display=False) as counter:
        layer.MODES[mode](module, x)
    return counter.get_total_flops()

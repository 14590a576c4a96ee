"""A bound on steps of a matrix wants the norms of errors, over all value channels: programs of a head, a block each, add them up.

They meet once a tile, forward and in the reverse scan, as tiles of a perceptron do (`miras.kernels._mlp.meetings`); the states that
backward computes again find the sums where the forward pass has left them. A program that had all value channels instead would leave
half of the multiprocessors idle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels._matrix.launches import Call, config
from miras.kernels._mlp.meetings import LINE
from miras.kernels.residuals import Residual


def sums(call: Call, found: Residual) -> Tensor:
    """Room for the sums of squares of errors, ``[B, H, T]``; nothing where programs do not meet."""
    x = call.tiles
    apart = call.inverse is not None and not found.rowwise and config(x, False, "scan").block < x.O
    return call.lr.new_empty(x.B, x.H, x.T if apart else 0)


def alone(squares: Tensor) -> dict[str, Any]:
    """What a kernel takes that finds the sums, or nothing."""
    return {"MEET": True, "squares": squares} if squares.numel() else {}


def together(call: Call, kernel: str, squares: Tensor) -> dict[str, Any]:
    """What a kernel takes whose programs meet: tickets, and room for what they tell each other, of two tiles."""
    if not squares.numel():
        return {}
    x = call.tiles
    blocks = -(-x.O // config(x, False, kernel).block)
    tickets = torch.zeros((1 + x.programs) * LINE.value, dtype=torch.int32, device=squares.device)
    return alone(squares) | {"tickets": tickets, "told": squares.new_empty(x.programs, 2, blocks, x.C)}

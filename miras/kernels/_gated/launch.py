"""What the kernels of the gated perceptron are launched with: as of the perceptron, with two hidden matrices.

Shapes: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O key, hidden and value width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.kernels._mlp import launch
from miras.kernels._mlp.meetings import LINE

TILE = 32
"""Hidden width of a program: three matrices take half as many registers again as two. Half of it for float32."""


class Given(launch.Given):
    """The same with ``w1 [b, J, 2, I, F]``, gate and up, and ``w2 [b, J, F, O]``, down."""

    def _tile(self, kernel: Any) -> int:
        most = TILE // 2 if self.q.dtype == torch.float32 else TILE
        return next(tile for tile in (32, 16) if tile <= most and self.w1.shape[-1] % tile == 0)

    def settings(self, kernel: Any) -> dict[str, int]:
        """As of the perceptron, but without loading ahead.

        Where tiles are loaded ahead, Triton leaves products under way from one tile to the next: what they read may have
        been overwritten, a buffer by the next tile or, by assemblers before CUDA 13.3, a register.
        """
        return super().settings(kernel) | {"num_stages": 1}

    def meetings(self, kernel: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Room for what tiles tell each other: sums over the hidden width, three over rows; and tickets."""
        b, c, tiles = len(self.q), self.rows.shape[-1], self.tiles(kernel)
        tickets = torch.zeros((1 + b) * LINE.value, dtype=torch.int32, device=self.q.device)
        return self.w1.new_empty(b, tiles, c, self.v.shape[-1]), self.w1.new_empty(b, 3, tiles, c), tickets


class Seen(NamedTuple):
    """What the scan leaves of every chunk of a group, ``[b, group, ...]``."""

    w1: Tensor  # [.., J, 2, I, F]: the stacks before the chunk
    w2: Tensor  # [.., J, O, F]: transposed
    o: Tensor  # [.., C, O]: the answers to its keys
    u2: Tensor  # [.., C, O]: the errors there
    squares: Tensor  # [.., 4, C]: squared norms of the errors of gate and up, of h, and of u2
    rates: Tensor  # [.., 3, C]: of gate, up and down

    @staticmethod
    def of(x: Given) -> Seen:
        (b, j, _, i, f), o, c, group = x.w1.shape, x.v.shape[-1], x.rows.shape[-1], x.groups()[0][1]
        narrow, wide = x.q.new_empty, x.w1.new_empty
        stacks = narrow(b, group, j, 2, i, f), narrow(b, group, j, o, f)
        rows = wide(b, group, 4, c), wide(b, group, 3, c)
        return Seen(*stacks, wide(b, group, c, o), narrow(b, group, c, o), *rows)

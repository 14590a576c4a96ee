"""Documents packed into one row.

Shapes: N documents, T tokens of all.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def document_bounds(cu_seqlens: Tensor) -> list[int]:
    """Boundaries of packed documents as numbers."""
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError("cu_seqlens must be a tensor of integers [N + 1]")
    return cu_seqlens.tolist()  # type: ignore[no-any-return]


def side_by_side(x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Documents of one row ``[1, T, ...]`` as rows of their own, and which of their tokens are not padding."""
    bounds = document_bounds(cu_seqlens)
    if x.shape[0] != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != x.shape[1] or bounds != sorted(bounds):
        raise ValueError(
            f"cu_seqlens packs one row [1, T, ...] and rises from 0 to T; got {bounds} for x {tuple(x.shape)}"
        )
    rows = torch.nn.utils.rnn.pad_sequence([x[0, a:b] for a, b in pairwise(bounds)], batch_first=True)
    lengths = cu_seqlens.diff()[:, None].to(x.device)
    return rows, torch.arange(rows.shape[1], device=x.device) < lengths

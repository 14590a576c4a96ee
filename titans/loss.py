"""Cross-entropy of a long sequence without its logits.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The label of tokens that have no loss, as in `torch.nn.functional.cross_entropy`."""


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = 1024) -> Tensor:
    """Mean cross-entropy of ``hidden @ weight.T``, whose logits exist for ``chunk`` tokens at a time, forward and backward.

    Args:
        hidden: ``[N, dim]``.
        weight: ``[V, dim]``.
        labels: ``[N]``, -100 where there is no loss.
        chunk: tokens whose logits exist together.

    Example:
        >>> hidden, weight = torch.randn(10, 4), torch.randn(7, 4)
        >>> loss = chunked_cross_entropy(hidden, weight, torch.arange(10) % 7, chunk=4)
        >>> torch.allclose(loss, F.cross_entropy(hidden @ weight.T, torch.arange(10) % 7))
        True
    """

    def of(h: Tensor, y: Tensor, w: Tensor) -> Tensor:
        logits = F.linear(h, w)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, reduction="sum")

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    total = torch.stack(
        [checkpoint(of, h, y, weight, use_reentrant=False, preserve_rng_state=False) for h, y in parts]
    ).sum()  # type: ignore[arg-type]
    return total / (labels != IGNORED).sum().clamp_min(1)

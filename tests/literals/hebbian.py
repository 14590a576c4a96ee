"""Hebbian memories: linear attention and its gated relatives."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from literals._shared import Remembered


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Remembered:
    """Linear transformers (2006.16236) Eq. 9: attention with the kernel phi(q) phi(k), normalised."""
    phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    y = []
    for t in range(len(q)):
        score = [(phi_q[t] * phi_k[i]).sum(-1, keepdim=True) for i in range(t + 1)]
        y.append(sum(s * v[i] for i, s in enumerate(score)) / sum(score))
    return y, {}


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """MIRAS Eq. 8, W = a W + k v; RetNet, Mamba-2 (lr is its Delta) and, with a decay per key channel, GLA (2312.06635)."""
    y = []
    for t in range(len(q)):
        W = decay[t] * W + lr[t] * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


LITERALS: dict[str, Callable[..., Remembered]] = {}

"""Delta rules."""

from collections.abc import Callable

import torch
from torch import Tensor

from literals._shared import Remembered


def delta_net(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor) -> Remembered:
    """DeltaNet (2406.06484): W = (I - b k k) W + b k v; MIRAS Eq. 9 without decay."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        W = (eye - lr[t] * k[t].mT @ k[t]) @ W + lr[t] * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def gated_delta_net(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """Gated DeltaNet (2412.06464): W = (I - b k k) a W + b k v; Kimi Delta Attention with a per key channel."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        W = (eye - lr[t] * k[t].mT @ k[t]) @ (decay[t] * W) + lr[t] * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def delta_product(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """DeltaProduct (2502.10297): one gate, then a delta rule for every pair of the token."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        W = decay[t] * W
        for kj, vj, bj in zip(k[t].unbind(-3), v[t].unbind(-3), lr[t].unbind(-3), strict=True):
            W = (eye - bj * kj.mT @ kj) @ W + bj * kj.mT @ vj
        y.append(q[t] @ W)
    return y, {"W": W}


def longhorn(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor) -> Remembered:
    """Longhorn (2407.14207) Theorem 3.1, Titans Eq. 35: the delta rule with b / (1 + b |k|^2), b per value channel or not."""
    y = []
    for t in range(len(q)):
        epsilon = lr[t] / (1 + lr[t] * (k[t] @ k[t].mT))
        W = W - k[t].mT @ (epsilon * (k[t] @ W)) + k[t].mT @ (epsilon * v[t])
        y.append(q[t] @ W)
    return y, {"W": W}


def longhorn_diagonal(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor) -> Remembered:
    """Longhorn as it is trained: 1 - e k^2, channel by channel, for I - e k k."""
    y = []
    for t in range(len(q)):
        epsilon = lr[t] / (1 + lr[t] * (k[t] @ k[t].mT))
        W = (1 - k[t].mT ** 2 @ epsilon) * W + k[t].mT @ (epsilon * v[t])
        y.append(q[t] @ W)
    return y, {"W": W}


def rwkv7(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, decay: Tensor, erase: Tensor, xi: Tensor, c: Tensor
) -> Remembered:
    """RWKV-7 (2503.14456), its wkv operator: W = (Diag(w) - (a kappa) kappa) W + k~ v."""
    y = []
    for t in range(len(q)):
        a = erase[t].mT
        kappa = k[t] * xi / (k[t] * xi).norm(dim=-1, keepdim=True)
        written = k[t] * (1 + (a - 1) * c)
        W = (torch.diag_embed(decay[t][..., 0]) - (a * kappa).mT @ kappa) @ W + written.mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def comba(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor, beta: Tensor, D: Tensor) -> Remembered:
    """Comba (2506.02475): a feedback key p = b k, the write along k, and the query less D p."""
    y = []
    for t in range(len(q)):
        p = torch.sigmoid(beta) * k[t]
        W = decay[t] * W - lr[t] * k[t].mT @ (p @ (decay[t] * W) - v[t])
        y.append((q[t] - D * p) @ W)
    return y, {"W": W}


def delta_gradient_descent(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """Nested Learning (2512.24695) Eq. 88: W = (a I - b k k) W - b k grad_y, of half the squared error."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        W = (decay[t] * eye - lr[t] * k[t].mT @ k[t]) @ W - lr[t] * k[t].mT @ (k[t] @ W - v[t])
        y.append(q[t] @ W)
    return y, {"W": W}


LITERALS: dict[str, Callable[..., Remembered]] = {
    "deltanet": delta_net,
    "gated_deltanet": gated_delta_net,
    "kda": gated_delta_net,
    "rwkv7": rwkv7,
    "comba": comba,
    "deltaproduct": delta_product,
    "longhorn": longhorn,
    "longhorn_diagonal": longhorn_diagonal,
}

"""Hebbian memories: linear attention and its gated relatives."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from literals._shared import Model, Remembered, Weights, plain_mlp, step, surprise

Kernel = Callable[[Tensor, Tensor], Tensor]


def linear_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, normalised: bool) -> Remembered:
    """Linear transformers (2006.16236) Eq. 9: attention with a kernel of features, divided by its sum or not."""
    y = []
    for t in range(len(q)):
        score = [kernel(q[t], k[i]) for i in range(t + 1)]
        mixed = sum(s * v[i] for i, s in enumerate(score))
        y.append(mixed / sum(score) if normalised else mixed)
    return y, {}


def of_features(phi: Callable[[Tensor], Tensor]) -> Kernel:
    return lambda q, k: (phi(q) * phi(k)).sum(-1, keepdim=True)


def of_scores(f: Callable[[Tensor], Tensor]) -> Kernel:
    return lambda q, k: f((q * k).sum(-1, keepdim=True))


KERNELS: dict[str, Kernel] = {
    "elu": of_features(lambda x: F.elu(x) + 1),
    "relu": of_features(F.relu),
    "softmax": of_features(lambda x: torch.softmax(x, -1)),
    "polynomial": of_scores(lambda s: (1 + s) ** 2),
    "taylor": of_scores(lambda s: 1 + s + s**2 / 2),
}
"""Of the feature maps with few features."""


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """MIRAS Eq. 8, W = a W + k v; RetNet, Mamba-2 (lr is its Delta) and, with a decay per key channel, GLA (2312.06635)."""
    y = []
    for t in range(len(q)):
        W = decay[t] * W + lr[t] * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def linear_transformer(q: Tensor, k: Tensor, v: Tensor, W: Tensor) -> Remembered:
    """Linear transformers Eq. 16-20, with s and z side by side."""
    s, z, y = W[..., :-1], W[..., -1:], []
    for t in range(len(q)):
        phi_q, phi_k = F.elu(q[t]) + 1, F.elu(k[t]) + 1
        s, z = s + phi_k.mT @ v[t], z + phi_k.mT
        y.append(phi_q @ s / (phi_q @ z))
    return y, {"W": torch.cat([s, z], -1)}


def retention(q: Tensor, k: Tensor, v: Tensor, W: Tensor) -> Remembered:
    """RetNet (2307.08621) Eq. 6 with the decays of Eq. 8, gamma = 1 - 2^(-5-h)."""
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(W.shape[1])], dtype=W.dtype)[:, None, None]
    return decayed(q, k, v, W, [gamma] * len(q))


def lightning_attention(q: Tensor, k: Tensor, v: Tensor, W: Tensor) -> Remembered:
    """Lightning Attention-2 (2401.04658): RetNet with gamma = exp(-8h / H), of a first layer."""
    heads = W.shape[1]
    gamma = torch.tensor([math.exp(-8 * h / heads) for h in range(heads)], dtype=W.dtype)[:, None, None]
    return decayed(q, k, v, W, [gamma] * len(q))


def decayed(q: Tensor, k: Tensor, v: Tensor, W: Tensor, decay: Tensor | list[Tensor]) -> Remembered:
    """GLA (2312.06635) §4.1, W = a W + k v, with a per key channel."""
    y = []
    for t in range(len(q)):
        W = decay[t] * W + k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def mamba2(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, log_rate: Tensor) -> Remembered:
    """Mamba-2 (2405.21060) Eq. 2 with a scalar A = -exp(log_rate): h = exp(Delta A) h + Delta B x, y = C h."""
    y = []
    for t in range(len(q)):
        W = torch.exp(-torch.exp(log_rate) * lr[t]) * W + lr[t] * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def mamba(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, log_rate: Tensor) -> Remembered:
    """Mamba (2312.00752) Algorithm 2, state by state: h_on = exp(Delta_o A_on) h_on + Delta_o B_n x_o."""
    y, A = [], -torch.exp(log_rate)
    for t in range(len(q)):
        h = []
        for n in range(W.shape[-2]):
            B = k[t][..., n : n + 1]
            h.append(torch.exp(lr[t] * A[..., n : n + 1, :]) * W[..., n : n + 1, :] + lr[t] * B * v[t])
        W = torch.cat(h, -2)
        y.append(q[t] @ W)
    return y, {"W": W}


def decaying_fast_weights(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, decay_key: Tensor, decay_value: Tensor
) -> Remembered:
    """Decaying fast weights (2210.04243; GLA Table 1): W = (a b) * W + k v, with an outer product of decays."""
    return decayed(q, k, v, W, decay_key @ decay_value)


def hgrn(q: Tensor, v: Tensor, W: Tensor, decay: Tensor) -> Remembered:
    """HGRN (2311.04823) §3 with real states: h = f h + (1 - f) i, o = g h."""
    y, h = [], W[..., None, :]
    for t in range(len(q)):
        f = decay[t].mT
        h = f * h + (1 - f) * v[t]
        y.append(q[t] * h)
    return y, {"W": h[..., 0, :]}


def hgrn2(q: Tensor, v: Tensor, W: Tensor, decay: Tensor) -> Remembered:
    """HGRN2 (2404.07904) §3: H = Diag(f) H + (1 - f) i."""
    y = []
    for t in range(len(q)):
        W = decay[t] * W + (1 - decay[t]) * v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def rwkv6(q: Tensor, k: Tensor, v: Tensor, W: Tensor, decay: Tensor, u: Tensor) -> Remembered:
    """RWKV-6 (2404.05892), its wkv operator: y = r (W + Diag(u) k v), W = Diag(w) W + k v."""
    y = []
    for t in range(len(q)):
        y.append(q[t] @ (W + (u * k[t]).mT @ v[t]))
        W = decay[t] * W + k[t].mT @ v[t]
    return y, {"W": W}


def deep_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, decay: Tensor, M: Model
) -> Remembered:
    """ATLAS (2505.23735) Eq. 19, descending on -<M(k), v>."""
    y = []
    for t in range(len(q)):
        W = step(decay[t], W, lr[t], surprise(M, W, k[t], v[t], lambda _, v=v[t]: -v))
        y.append(M(W, q[t]))
    return y, {"W": W}


def sliding_window_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, decay: Tensor, gamma: Tensor, past: list[Tensor], window: int
) -> Remembered:
    """ATLAS Eq. 20: W = a W + the sum over the window of gamma k v."""
    y, (k, v, gamma) = [], (torch.cat(both) for both in zip(past, (k, v, gamma), strict=True))
    for t in range(len(q)):
        W = decay[t] * W + sum(gamma[i] * k[i].mT @ v[i] for i in range(t, t + window))
        y.append(q[t] @ W)
    return y, {"W": W}


LITERALS: dict[str, Callable[..., Remembered]] = {
    "linear_attention": linear_transformer,
    "retnet": retention,
    "lightning_attention": lightning_attention,
    "gla": decayed,
    "mamba2": mamba2,
    "mamba": mamba,
    "dfw": decaying_fast_weights,
    "hgrn": hgrn,
    "hgrn2": hgrn2,
    "rwkv6": rwkv6,
    "dla": partial(deep_linear_attention, M=plain_mlp),
    "swla": partial(sliding_window_linear_attention, window=3),
}

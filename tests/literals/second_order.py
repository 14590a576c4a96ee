"""Memories that solve for the past: least squares, windows, orthogonalised steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from literals._shared import Model, Remembered, Weights, step, windowed


def recursive_least_squares(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, P: Tensor, lr: Tensor, forget: Tensor
) -> Remembered:
    """Sherman and Morrison with forgetting, gain P k / (gamma + k P k), for the symmetric part of P."""
    y, P = [], (P + P.mT) / 2
    for t in range(len(q)):
        gain = k[t] @ P / (forget[t] + k[t] @ P @ k[t].mT)
        W = W + lr[t] * gain.mT @ (v[t] - k[t] @ W)
        P = (P - gain.mT @ k[t] @ P) / forget[t]
        y.append(q[t] @ W)
    return y, {"W": W, "P": P}


def omega_net(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Weights,
    lr: Tensor,
    decay: Tensor,
    gamma: Tensor,
    past: list[Tensor],
    M: Model,
    window: int,
) -> Remembered:
    """OmegaNet, ATLAS Eq. 10, with a learning rate in front."""
    y = []
    for t in range(len(q)):
        W = step(decay[t], W, lr[t], windowed(M, W, t, window, k, v, gamma, past))
        y.append(M(W, q[t]))
    return y, {"W": W}


def atlas(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Weights,
    S: Weights,
    lr: Tensor,
    decay: Tensor,
    momentum: Tensor,
    gamma: Tensor,
    past: list[Tensor],
    M: Model,
    window: int,
) -> Remembered:
    """ATLAS Eq. 32-33: momentum of the window's gradient, orthogonalised."""
    y = []
    for t in range(len(q)):
        S = step(momentum[t], S, torch.ones(()), windowed(M, W, t, window, k, v, gamma, past))
        W = {n: decay[t] * W[n] + lr[t] * newton_schulz_5(S[n]) for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W, "S": S}


def newton_schulz_5(S: Tensor) -> Tensor:
    X = S / S.square().sum((-2, -1), keepdim=True).sqrt()
    for _ in range(5):
        X = 3.4445 * X - 4.7750 * X @ X.mT @ X + 2.0315 * X @ X.mT @ X @ X.mT @ X
    return X


LITERALS: dict[str, Callable[..., Remembered]] = {}

"""Memories that solve for the past: least squares, windows, orthogonalised steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from literals._shared import Model, Remembered, Weights, similarity, squared, step, windowed
from miras.architectures import FeatureMap


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


def mesa_net(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, H: Tensor, lr: Tensor, decay: Tensor, ridge: Tensor
) -> Remembered:
    """MesaNet (2506.05233): G and H are gated sums of v k and k k, the answer is G (H + Lambda)^-1 q."""
    y, H = [], (H + H.mT) / 2
    for t in range(len(q)):
        H = decay[t] * H + lr[t] * k[t].mT @ k[t]
        W = decay[t] * W + lr[t] * k[t].mT @ v[t]
        y.append(torch.linalg.solve(H + torch.diag_embed(ridge[t][..., 0]), q[t].mT).mT @ W)
    return y, {"W": W, "H": H}


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
    chunk: int = 1,
    gradient: Callable[..., Weights] = squared,
) -> Remembered:
    """OmegaNet, ATLAS Eq. 10, with a learning rate in front; in chunks Eq. 16, all gradients at the weights before."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(decay[t], W, lr[t], windowed(M, anchor, t, window, k, v, gamma, past, gradient))
        y.append(M(W, q[t]))
    return y, {"W": W}


def deep_transformer(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, M: Model, chunk: int = 1) -> Remembered:
    """DeepTransformers, ATLAS Eq. 25-26: a deep memory of exponential features learns by similarity, and keeps all."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(1.0, W, lr[t], similarity(M, anchor, k[t], v[t]))
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
    chunk: int = 1,
) -> Remembered:
    """ATLAS Eq. 32-33: momentum of the window's gradient, orthogonalised; in chunks Eq. 36-41."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        S = step(momentum[t], S, torch.ones(()), windowed(M, anchor, t, window, k, v, gamma, past))
        W = {n: decay[t] * W[n] + lr[t] * newton_schulz_5(S[n]) for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W, "S": S}


def newton_schulz_5(S: Tensor) -> Tensor:
    X = S / (S.square().sum((-2, -1), keepdim=True) + 1e-14).sqrt()  # the floor of the library, not of the paper
    for _ in range(5):
        X = 3.4445 * X - 4.7750 * X @ X.mT @ X + 2.0315 * X @ X.mT @ X @ X.mT @ X
    return X


def on_features(kind: Any, gated: bool = False) -> Model:
    """ATLAS App. E, x + W_1 GELU(W_2 phi(x)), and that of ATLAS++ with a gate; monomials in the order of `FeatureMap`."""
    phi = FeatureMap(kind=kind).features

    def M(W: Weights, x: Tensor) -> Tensor:
        if gated:
            return x + (F.gelu(phi(x) @ W["gate"]) * (phi(x) @ W["up"])) @ W["down"]
        return x + F.gelu(phi(x) @ W["w_1"]) @ W["w_2"]

    return M


LITERALS: dict[str, Callable[..., Remembered]] = {
    "mesanet": mesa_net,
    "rls": recursive_least_squares,
    "omeganet": partial(omega_net, M=on_features("polynomial")),
    "atlas": partial(atlas, M=on_features("polynomial")),
    "atlas_pp": partial(atlas, M=on_features("polynomial", gated=True)),
    "dot": partial(omega_net, M=on_features("taylor")),
    "deep_transformer": partial(deep_transformer, M=on_features("taylor")),
    "swdt": partial(omega_net, M=on_features("taylor"), gradient=similarity),
}

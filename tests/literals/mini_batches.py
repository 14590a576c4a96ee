"""Test-time training in mini-batches."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from literals._shared import Model, Remembered, Weights, layer_norm, similarity, step, surprise, twice


def test_time_training(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, M: Model, chunk: int) -> Remembered:
    """TTT (2407.04620) §2.4: mini-batches, whose gradients are all taken at the weights before them."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(1.0, W, lr[t], surprise(M, anchor, k[t], v[t], twice))
        y.append(M(W, q[t]))
    return y, {"W": W}


def ttt(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, reader: Tensor, M: Model, chunk: int) -> Remembered:
    """TTT's dual form (§2.5) with the rates of the official code, eta_ti = reader_t lr_i within a mini-batch."""
    y, anchor, G = [], W, W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor, G = W, {n: torch.zeros_like(w) for n, w in W.items()}
        g = surprise(M, anchor, k[t], v[t], twice)
        G = {n: G[n] + like(lr[t], g[n]) * g[n] for n in G}
        W = {n: anchor[n] - like(reader[t], G[n]) * G[n] for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W}


def like(gate: Tensor, w: Tensor) -> Tensor:
    """A gate of a head that multiplies a matrix or a bias."""
    return gate.reshape(*gate.shape[:2], *[1] * (w.dim() - 2))


def ttt_model(W: Weights, x: Tensor) -> Tensor:
    """TTT §2.7, x + LN(f(x)) with f linear or of two layers, and biases that learn as the matrices do."""
    h, depth = x, len(W) // 2
    for n in range(1, depth + 1):
        h = h @ W[f"w_{n}"] + W[f"b_{n}"].unsqueeze(-2)
        if n < depth:
            h = F.gelu(h, approximate="tanh")
    return x + layer_norm(h)


def lact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Weights,
    A: Weights,
    S: Weights,
    lr: dict[str, Tensor],
    momentum: Tensor,
    start: Weights,
    M: Model,
    chunk: int,
) -> Remembered:
    """LaCT (2505.23884), official code: apply the old weights, then once a chunk momentum, Muon, and the norms of the start.

    A is W where a chunk starts.
    """
    y = []
    for t in range(len(q)):
        if t % chunk == 0:
            G, rates = {n: torch.zeros_like(w) for n, w in W.items()}, []
        y.append(M(W, q[t]))
        g = similarity(M, W, k[t], v[t])
        G = {n: G[n] + lr[n][t] * g[n] for n in G}
        rates.append(momentum[t])
        if t % chunk == chunk - 1:
            S = {n: sum(rates) / chunk * S[n] - G[n] for n in S}
            A = {n: A[n] + orthogonal(S[n]) for n in W}
            A = W = {n: A[n] / A[n].norm(dim=-2, keepdim=True) * start[n] for n in W}
    return y, {"W": W}


def swiglu(W: Weights, x: Tensor) -> Tensor:
    return (F.silu(x @ W["gate"]) * (x @ W["up"])) @ W["down"]


def orthogonal(S: Tensor) -> Tensor:
    """LaCT's five steps of Newton-Schulz, each with its own coefficients."""
    X = S / (S.square().sum((-2, -1), keepdim=True) + 1e-14).sqrt()  # the floor of the library, not of the paper
    for a, b, c in (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):
        X = a * X + b * X @ X.mT @ X + c * X @ X.mT @ X @ X.mT @ X
    return X


LITERALS: dict[str, Callable[..., Remembered]] = {
    "ttt_linear": partial(ttt, M=ttt_model),
    "ttt_mlp": partial(ttt, M=ttt_model),
    "lact": partial(lact, M=swiglu),
}

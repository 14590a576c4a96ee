"""Titans, Moneta, Yaad and Memora."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from literals._shared import Model, Remembered, Weights, matrix, mlp, perceptron, step, surprise, twice


def titans(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Weights,
    S: Weights,
    lr: Tensor,
    decay: Tensor,
    momentum: Tensor,
    M: Model,
    chunk: int = 1,
) -> Remembered:
    """Titans (2501.00663) Eq. 12-15; in chunks Eq. 16 and 18, all gradients at the weights before the chunk."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        S = step(momentum[t], S, lr[t], surprise(M, anchor, k[t], v[t], twice))
        W = {n: decay[t] * W[n] + S[n] for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W, "S": S}


def titans_chunked(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor, S: Tensor, lr: Tensor, decay: Tensor, momentum: Tensor, chunk: int
) -> Remembered:
    """Titans Eq. 16 and 18 with everything summed out: all coefficients of a chunk, products and sums as they are written."""
    y = []
    for start in range(0, len(q), chunk):
        n = min(chunk, len(q) - start)
        a, e, th = decay[start:], momentum[start:], lr[start:]
        A = [[a[r + 1 : t + 1].prod(0) for r in range(t + 1)] for t in range(n)]
        E = [[e[s + 1 : t + 1].prod(0) for s in range(t + 1)] for t in range(n)]
        G = [2 * k[start + s].mT @ (k[start + s] @ W - v[start + s]) for s in range(n)]
        W_0, S_0 = W, S
        for t in range(n):
            W = a[: t + 1].prod(0) * W_0 + sum(A[t][r] * e[: r + 1].prod(0) for r in range(t + 1)) * S_0
            for s in range(t + 1):
                W = W - sum(A[t][r] * E[r][s] for r in range(s, t + 1)) * th[s] * G[s]
            y.append(q[start + t] @ W)
        S = e[:n].prod(0) * S_0 - sum(E[n - 1][s] * th[s] * G[s] for s in range(n))
    return y, {"W": W, "S": S}


def smooth_cube(error: Tensor) -> Tensor:
    """MIRAS Eq. 11 for p = 3 with Remark 5: Sign(r) as tanh(10 r), |r| as sqrt(r^2 + 1e-6)."""
    return 3 * torch.tanh(10 * error) * (error.square() + 1e-6)


def norm_4(A: Tensor) -> Tensor:
    """The l4 norm of a matrix; the 1e-1 beside it is ours, so that an empty memory can be read."""
    return ((A**4).sum((-2, -1), keepdim=True) + 1e-1**4) ** (1 / 4)


def moneta(q: Tensor, k: Tensor, v: Tensor, A: Weights, lr: Tensor, decay: Tensor, M: Model) -> Remembered:
    """MIRAS (2504.13173) Eq. 24-25 with (p, q) = (3, 4), as printed, with one learning rate where both have it."""
    y = []
    for t in range(len(q)):
        W = {n: A[n] / norm_4(A[n]) ** 2 for n in A}
        A = step(decay[t], A, lr[t], surprise(M, W, k[t], v[t], smooth_cube))
        W = {n: A[n] / norm_4(A[n]) ** 2 for n in A}
        y.append(M(W, q[t]))
    return y, {"A": A, "W": W}


def moneta_chunked(
    q: Tensor, k: Tensor, v: Tensor, A: Weights, lr: Tensor, decay: Tensor, M: Model, chunk: int
) -> Remembered:
    """MIRAS §5.4: inside a chunk only the linear part runs; the norm is renewed where the next one starts."""
    y, W, norm = [], A, A
    for t in range(len(q)):
        if t % chunk == 0:
            norm = {n: norm_4(A[n]) ** 2 for n in A}
            W = {n: A[n] / norm[n] for n in A}
        A = step(decay[t], A, lr[t], surprise(M, W, k[t], v[t], smooth_cube))
        y.append(M({n: A[n] / norm[n] for n in A}, q[t]))
    return y, {"A": A}


def switch(delta: Tensor) -> Callable[[Tensor], Tensor]:
    """MIRAS Eq. 16: the derivative of l2 where the error is small, delta times that of l1 (smooth) where it is not."""
    return lambda r: torch.where(r.norm(dim=-1, keepdim=True) <= delta, 2 * r, delta * torch.tanh(10 * r))


def yaad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Weights,
    lr: Tensor,
    decay: Tensor,
    delta: Tensor,
    M: Model,
    chunk: int = 1,
) -> Remembered:
    """MIRAS Eq. 26; in chunks the switch too is at the weights before the chunk (§5.4)."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(decay[t], W, lr[t], surprise(M, anchor, k[t], v[t], switch(delta[t])))
        y.append(M(W, q[t]))
    return y, {"W": W}


def memora(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, decay: Tensor, M: Model) -> Remembered:
    """MIRAS Eq. 27; the weights into one unit sum to one."""
    y = []
    for t in range(len(q)):
        logits = step(decay[t], {n: W[n].log() for n in W}, lr[t], surprise(M, W, k[t], v[t], twice))
        W = {n: torch.softmax(logits[n], -2) for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W}


def memora_chunked(
    q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, decay: Tensor, M: Model, chunk: int
) -> Remembered:
    """MIRAS Eq. 30-32: the first token of a chunk takes an exact step, where the others then take their gradients."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk in (0, 1):
            anchor = W
        logits = step(decay[t], {n: W[n].log() for n in W}, lr[t], surprise(M, anchor, k[t], v[t], twice))
        W = {n: torch.softmax(logits[n], -2) for n in W}
        y.append(M(W, q[t]))
    return y, {"W": W}


LITERALS: dict[str, Callable[..., Remembered]] = {
    "titans_lmm": partial(titans, M=perceptron),
    "titans_linear": partial(titans, M=matrix),
    "moneta": partial(moneta_chunked, M=mlp),
    "yaad": partial(yaad, M=mlp),
    "memora": partial(memora_chunked, M=mlp),
}
LITERALS |= {f"{name}_h": LITERALS[name] for name in ("moneta", "yaad", "memora")}

"""Published recurrences, transcribed literally: slow, obvious, and with the number of their equation.

Every token is a row vector, so ``q``, ``k`` and ``v`` are ``[T, ..., 1, D]``, a gate is ``[T, ..., 1, 1]`` (one per key
channel ``[T, ..., I, 1]``), and a matrix memory answers ``x @ W``. Where the papers write a column on the right, this is
its transpose. ``decay`` is the fraction kept (one minus what Titans print) and ``lr`` the inner learning rate. A memory
``M(W, x)`` of several matrices takes them as a dictionary. All return the answers and what they remember at the end.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Model = Callable[[Weights, Tensor], Tensor]
Remembered = tuple[list[Tensor], dict[str, Tensor | Weights]]


# --- Memories and the pieces they share -----------------------------------------------------------------------------


def matrix(W: Weights, x: Tensor) -> Tensor:
    return x @ W["w"]


def mlp(W: Weights, x: Tensor) -> Tensor:
    """MIRAS (2504.13173) §5.3, x + LN(W_1 GELU(W_2 x)); the paper counts its matrices from the answer."""
    return x + layer_norm(F.gelu(x @ W["w_1"]) @ W["w_2"])


def ttt_linear(W: Weights, x: Tensor) -> Tensor:
    """TTT (2407.04620) §2.7, x + LN(W x)."""
    return x + layer_norm(x @ W["w_1"])


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def surprise(M: Model, W: Weights, k: Tensor, v: Tensor, psi: Callable[[Tensor], Tensor]) -> Weights:
    """The gradient in W of a loss whose derivative in the error M(k) - v is psi."""
    answer = M(W, k)
    gradients = torch.autograd.grad(answer, list(W.values()), psi(answer - v), create_graph=True)
    return dict(zip(W, gradients, strict=True))


def twice(error: Tensor) -> Tensor:
    """Of the squared error, which MIRAS and Titans print without the half."""
    return 2 * error


def step(decay: Tensor | float, W: Weights, lr: Tensor, g: Weights) -> Weights:
    return {n: decay * W[n] - lr * g[n] for n in W}


# --- Linear attention -----------------------------------------------------------------------------------------------


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


# --- Delta rules ----------------------------------------------------------------------------------------------------


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
    """Longhorn (2407.14207) Theorem 3.1, Titans Eq. 35: the delta rule with b / (1 + b |k|^2)."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        epsilon = lr[t] / (1 + lr[t] * k[t] @ k[t].mT)
        W = (eye - epsilon * k[t].mT @ k[t]) @ W + epsilon * k[t].mT @ v[t]
        y.append(q[t] @ W)
    return y, {"W": W}


def delta_gradient_descent(q: Tensor, k: Tensor, v: Tensor, W: Tensor, lr: Tensor, decay: Tensor) -> Remembered:
    """Nested Learning (2512.24695) Eq. 88: W = (a I - b k k) W - b k grad_y, of half the squared error."""
    y, eye = [], torch.eye(k.shape[-1])
    for t in range(len(q)):
        W = (decay[t] * eye - lr[t] * k[t].mT @ k[t]) @ W - lr[t] * k[t].mT @ (k[t] @ W - v[t])
        y.append(q[t] @ W)
    return y, {"W": W}


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


# --- Titans, TTT, ATLAS ---------------------------------------------------------------------------------------------


def titans(
    q: Tensor, k: Tensor, v: Tensor, W: Weights, S: Weights, lr: Tensor, decay: Tensor, momentum: Tensor, M: Model
) -> Remembered:
    """Titans (2501.00663) Eq. 12-15."""
    y = []
    for t in range(len(q)):
        S = step(momentum[t], S, lr[t], surprise(M, W, k[t], v[t], twice))
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


def test_time_training(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, M: Model, chunk: int) -> Remembered:
    """TTT (2407.04620) §2.4: mini-batches, whose gradients are all taken at the weights before them."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(1.0, W, lr[t], surprise(M, anchor, k[t], v[t], twice))
        y.append(M(W, q[t]))
    return y, {"W": W}


def windowed(
    M: Model, W: Weights, t: int, window: int, k: Tensor, v: Tensor, gamma: Tensor, past: list[Tensor]
) -> Weights:
    """ATLAS (2505.23735) Eq. 9: the gradient of all pairs in the window ending at token t, at the same weights."""
    k, v, gamma = (torch.cat(both) for both in zip(past, (k, v, gamma), strict=True))
    each = [(gamma[i], surprise(M, W, k[i], v[i], twice)) for i in range(t, t + window)]
    return {n: torch.stack([c * g[n] for c, g in each]).sum(0) for n in W}


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


# --- Moneta, Yaad, Memora -------------------------------------------------------------------------------------------


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


def yaad(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, decay: Tensor, delta: Tensor, M: Model) -> Remembered:
    """MIRAS Eq. 26."""
    y = []
    for t in range(len(q)):
        W = step(decay[t], W, lr[t], surprise(M, W, k[t], v[t], switch(delta[t])))
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

"""What the transcriptions share: types, memories of several matrices, and the gradient of a loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Model = Callable[[Weights, Tensor], Tensor]
Remembered = tuple[list[Tensor], dict[str, Tensor | Weights]]


def matrix(W: Weights, x: Tensor) -> Tensor:
    return x @ W["w"]


def mlp(W: Weights, x: Tensor) -> Tensor:
    """MIRAS (2504.13173) §5.3, x + LN(W_1 GELU(W_2 x)); the paper counts its matrices from the answer."""
    return x + layer_norm(F.gelu(x @ W["w_1"]) @ W["w_2"])


def perceptron(W: Weights, x: Tensor) -> Tensor:
    """Titans (2501.00663) §3.1, a perceptron of any depth; the paper leaves its activation open."""
    for n in range(1, len(W)):
        x = F.silu(x @ W[f"w_{n}"])
    return x @ W[f"w_{len(W)}"]


def plain_mlp(W: Weights, x: Tensor) -> Tensor:
    """ATLAS (2505.23735) §5, x + W_1 GELU(W_2 x)."""
    return x + F.gelu(x @ W["w_1"]) @ W["w_2"]


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


def similarity(M: Model, W: Weights, k: Tensor, v: Tensor) -> Weights:
    """The gradient in W of the negative inner product of M(k) and v."""
    gradients = torch.autograd.grad(M(W, k), list(W.values()), -v, create_graph=True)
    return dict(zip(W, gradients, strict=True))


def squared(M: Model, W: Weights, k: Tensor, v: Tensor) -> Weights:
    """The gradient in W of the squared error."""
    return surprise(M, W, k, v, twice)


def windowed(
    M: Model,
    W: Weights,
    t: int,
    window: int,
    k: Tensor,
    v: Tensor,
    gamma: Tensor,
    past: list[Tensor],
    gradient: Callable[..., Weights] = squared,
) -> Weights:
    """ATLAS (2505.23735) Eq. 9: the gradient of all pairs in the window ending at token t, at the same weights."""
    k, v, gamma = (torch.cat(both) for both in zip(past, (k, v, gamma), strict=True))
    each = [(gamma[i], gradient(M, W, k[i], v[i])) for i in range(t, t + window)]
    return {n: torch.stack([c * g[n] for c, g in each]).sum(0) for n in W}

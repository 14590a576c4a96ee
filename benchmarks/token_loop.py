"""A matrix memory with momentum, token by token, as anyone would first write it."""

import torch
from torch import Tensor


def token_loop(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
    """`S = momentum S + lr k^T (k W - v)`, `W = decay W - S`, `y = q W` from zero.

    `q, k, v` are `[B, T, H, D]` and the gates `[B, T, H]`; the gradient is in closed form.
    """
    B, _, H, D = k.shape
    W = S = k.new_zeros(B, H, D, D)
    rows = (x[..., None, :].unbind(1) for x in (q, k, v))
    gates = (x[..., None, None].unbind(1) for x in (lr, decay, momentum))
    outputs: list[Tensor] = []
    for q_t, k_t, v_t, lr_t, decay_t, momentum_t in zip(*rows, *gates, strict=True):
        S = momentum_t * S + (lr_t * k_t).mT @ (k_t @ W - v_t)
        W = decay_t * W - S
        outputs.append((q_t @ W)[..., 0, :])
    return torch.stack(outputs, 1)

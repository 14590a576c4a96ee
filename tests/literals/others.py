"""Slots, shards and stacks of memories, and attention."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from literals._shared import Model, Remembered, Weights, mlp, plain_mlp, squared, step, surprise


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Remembered:
    """Attention (1706.03762) Eq. 1, every query over the keys so far."""
    y = []
    for t in range(len(q)):
        score = torch.stack([(q[t] * k[i]).sum(-1, keepdim=True) / q.shape[-1] ** 0.5 for i in range(t + 1)])
        y.append((torch.softmax(score, 0) * v[: t + 1]).sum(0))
    return y, {}


def slots(W: Weights, x: Tensor) -> Tensor:
    return torch.softmax(x, -1) @ W["slots"]


def lattice(q: Tensor, k: Tensor, v: Tensor, A: Weights, lr: Tensor, M: Model, chunk: int = 1) -> Remembered:
    """Lattice (2504.05646), derived: slots are read normalised, and written orthogonally to themselves."""
    y, anchor, s = [], A["slots"], A["slots"]
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = s
        unit = anchor / anchor.norm(dim=-1, keepdim=True)
        code = torch.softmax(k[t], -1).mT  # one number a slot
        write = code * (code.mT @ unit - v[t])
        s = s - lr[t] * (write - unit * (unit * write).sum(-1, keepdim=True)) / anchor.norm(dim=-1, keepdim=True)
        y.append(M({"slots": s / s.norm(dim=-1, keepdim=True)}, q[t]))
    return y, {"A": {"slots": s}}


def trellis(
    q: Tensor, k: Tensor, v: Tensor, code: Tensor, S_k: Tensor, S_v: Tensor, lr: Tensor, decay: Tensor, chunk: int
) -> Remembered:
    """Trellis (2512.23852) as a public implementation reads it: compress keys, then learn values from what became of them."""
    y, before = [], (S_k, S_v)
    for t in range(len(q)):
        if t % chunk == 0:
            before = S_k, S_v
        S_k = decay[t] * S_k - lr[t] * k[t].mT @ (k[t] @ before[0] - k[t] @ code)
        c = unit_silu(k[t] @ S_k)
        S_v = decay[t] * S_v - lr[t] * c.mT @ (c @ before[1] - v[t])
        y.append(unit_silu(q[t] @ S_k) @ S_v)
    return y, {"S_k": S_k, "S_v": S_v}


def unit_silu(z: Tensor) -> Tensor:
    z = z * torch.sigmoid(z)
    return z / z.norm(dim=-1, keepdim=True) * z.shape[-1] ** 0.5


def tnt(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    V: Weights,
    starts: list[Weights],
    M: Model,
    chunk: int,
    local: tuple[int, ...],
    period: int,
) -> Remembered:
    """TNT (2511.07343) Eq. 5-7: a global memory read where its chunk started, local ones that start anew every period."""
    y, anchor = [], V
    W, anchors = list(starts), list(starts)
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = V
        if t % period == 0:
            W, P = list(starts), torch.zeros_like(k[t].mT @ k[t])
        P = P + k[t].mT @ k[t] / (k[t] @ k[t].mT)
        V = step(1.0, V, lr[t], squared(M, anchor, k[t], v[t]))
        y.append(M(anchor, q[t]))
        for i in range(len(local)):
            if t % local[i] == 0:
                anchors[i] = W[i]
            W[i] = step(1.0, W[i], lr[t], squared(M, anchors[i], k[t], v[t]))
            y[-1] = y[-1] + M(W[i], q[t] @ P)
    return y, {"V": V, **{f"W_{i}": w for i, w in enumerate(W)}}


def hope(
    q: Tensor,
    x_key: Tensor,
    x_value: Tensor,
    modified: dict[str, Weights],
    levels: list[Weights],
    lr_gate: Callable[[Tensor], Tensor],
    decay_gate: Callable[[Tensor], Tensor],
    chunk: int,
    periods: tuple[int, ...],
) -> Remembered:
    """Nested Learning (2512.24695) Eq. 83-97: five memories, all that is derived taken where the chunk started; then levels."""
    y, anchor, anchors, levels = [], modified, list(levels), list(levels)
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = modified
        key, value = plain_mlp(anchor["key"], x_key[t]), plain_mlp(anchor["value"], x_value[t])
        key = key / key.norm(dim=-1, keepdim=True)
        lr = lr_gate(plain_mlp(anchor["rate"], x_key[t]).mean(-1, keepdim=True))
        decay = decay_gate(plain_mlp(anchor["decay"], x_key[t]).mean(-1, keepdim=True))
        modified = {
            name: delta_gradient(W, anchor[name], key, plain_mlp(anchor[name], value), lr, decay)
            for name, W in modified.items()
        }
        o = plain_mlp(modified["memory"], q[t])
        for i in range(len(levels)):
            if t % periods[i] == 0:
                anchors[i] = levels[i]
            levels[i] = step(1.0, levels[i], lr, surprise(plain_mlp, anchors[i], o, value, lambda r: r))
            o = plain_mlp(anchors[i], o)
        y.append(o)
    return y, {**modified, **{f"level_{i}": w for i, w in enumerate(levels)}}


def delta_gradient(W: Weights, anchor: Weights, key: Tensor, wanted: Tensor, lr: Tensor, decay: Tensor) -> Weights:
    """Eq. 88 matrix by matrix, of half the squared error: each also forgets along its own input.

    The key, which the weights have made themselves, is given.
    """
    g = surprise(plain_mlp, {n: w.clone() for n, w in anchor.items()}, key, wanted, lambda r: r)
    hidden = F.gelu(key @ anchor["w_1"])
    forget = {"w_1": key.mT @ (key @ anchor["w_1"]), "w_2": hidden.mT @ (hidden @ anchor["w_2"])}
    return {n: decay * W[n] - lr * (g[n] + forget[n]) for n in W}


LITERALS: dict[str, Callable[..., Remembered]] = {
    "softmax_attention": softmax_attention,
    "lattice": partial(lattice, M=slots),
    "trellis": trellis,
    "tnt": partial(tnt, M=mlp),
    "hope": hope,
}

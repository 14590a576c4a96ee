"""The blocks of Titans and MIRAS as printed, a token at a time: no batch, no cache, no chunk.

``x`` is a list of tokens ``[dim]``. Modules are used for their parameters only. Numbers of equations are those of Titans
(2501.00663) unless said otherwise. Where the paper's printed form is not causal, the two masks of the causal form are
marked "causal".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miras import Memory
from titans.attention import Attention
from titans.blocks import LMM, MAC, MAG, MAL, Parallel, SelfAttention

Tokens = Sequence[Tensor]


def rms(x: Tensor, gain: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * gain


class Neural:
    """The long-term memory: every head a perceptron that learns while it reads (Eq. 11-15).

    Gradients are taken at the weights in front of a chunk (§3.2); with chunks of one token, at the newest.
    """

    def __init__(self, memory: Memory):
        self.of, self.heads, self.width = memory, memory.heads, memory.head_dim
        starts = {n: w.detach().clone() for n, w in memory.start.items()}
        self.W = [{n: w[h] for n, w in starts.items()} for h in range(self.heads)]
        self.S = [{n: torch.zeros_like(w) for n, w in self.W[h].items()} for h in range(self.heads)]
        self.anchor, self.written = [dict(W) for W in self.W], 0
        self.lines: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}

    def projected(self, which: str, x: Tensor) -> list[Tensor]:
        """x W, a convolution over the newest tokens of width 4, SiLU (§4.4); heads apart."""
        index = "qkv".index(which)
        assert self.of.conv is not None
        weight, taps = (z.chunk(3)[index] for z in (self.of.qkv.weight, self.of.conv))
        self.lines[which].append(weight @ x)
        newest = self.lines[which][::-1]
        y = torch.stack([taps[:, -1 - j] * newest[j] for j in range(min(taps.shape[1], len(newest)))]).sum(0)
        return list((y * torch.sigmoid(y)).view(self.heads, self.width))

    def queries(self, x: Tensor) -> list[Tensor]:
        return [q / q.norm() for q in self.projected("q", x)]

    def answer(self, W: dict[str, Tensor], q: Tensor) -> Tensor:
        """MIRAS §5.3: q + LN(W_2 GELU(W_1 q))."""
        h = F.gelu(q @ W["w_1"]) @ W["w_2"]
        h = h - h.mean()
        return q + h / (h.square().mean() + 1e-6).sqrt()

    def write(self, x: Tensor) -> None:
        keys, values = self.projected("k", x), self.projected("v", x)  # Eq. 11
        gates = {n: g[0, 0] for n, g in self.of.gates(x[None, None]).items()}
        if self.written % self.of.spec.chunk_size == 0:
            self.anchor = [dict(W) for W in self.W]
        self.written += 1
        for h in range(self.heads):
            k, v = keys[h] / keys[h].norm(), values[h]
            W = {n: w.detach().requires_grad_() for n, w in self.anchor[h].items()}
            loss = (self.answer(W, k) - v).square().sum()  # Eq. 12
            for n, g in zip(W, torch.autograd.grad(loss, list(W.values())), strict=True):
                self.S[h][n] = gates["log_momentum"][h].exp() * self.S[h][n] - gates["lr"][h] * g  # Eq. 14
                self.W[h][n] = gates["log_decay"][h].exp() * self.W[h][n] + self.S[h][n]  # Eq. 13

    def read(self, W: list[dict[str, Tensor]], queries: list[Tensor], x: Tensor) -> Tensor:
        """Eq. 15; then norm, gate and output projection (§4.4)."""
        heads = [rms(self.answer(W[h], q), self.of.norm.weight) for h, q in enumerate(queries)]
        gate: Any = self.of.gate
        return self.of.out.weight @ (torch.cat(heads) * F.silu(gate.weight @ x))

    def __call__(self, x: Tensor) -> Tensor:
        queries = self.queries(x)
        self.write(x)
        return self.read(self.W, queries, x)


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE: channel j and its partner are a complex number that turns."""
    half = x.shape[-1] // 2
    angle = position * theta ** -(torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


def softmax_attention(of: Attention, x: Tensor, here: int, past: Sequence[tuple[Tensor, int | None]]) -> Tensor:
    """What the token x at position ``here`` sees of tokens and their positions; None for tokens without one."""
    heads, width = of.spec.heads, of.width
    queries = (of.q.weight @ x).view(heads, width)
    said = []
    for h in range(heads):
        group = h * of.groups // heads
        scores, values = [], []
        for token, position in past:
            k, v = (of.kv.weight @ token).view(2, of.groups, width)[:, group]
            if of.norms is not None:
                k = rms(k, of.norms[1].weight)
            q = queries[h] if of.norms is None else rms(queries[h], of.norms[0].weight)
            if position is not None and of.spec.theta is not None:
                q, k = rotate(q, here, of.spec.theta), rotate(k, position, of.spec.theta)
            scores.append(q @ k / math.sqrt(width))
            values.append(v)
        said.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
    y = torch.cat(said)
    if of.gate is not None:
        y = y * torch.sigmoid(of.gate.weight @ x)
    return of.out.weight @ y


def attention(of: Attention, x: Tokens, prefix: Tokens) -> Tokens:
    """Every token sees the prefix and, of the tokens up to itself, its window or its segment."""
    past: list[list[tuple[Tensor, int | None]]] = []
    for i in range(len(x)):
        first = 0
        if of.spec.window is not None:
            first = max(0, i - of.spec.window + 1)
        if of.spec.segment is not None:
            first = i - i % of.spec.segment
        past.append([*((p, None) for p in prefix), *((x[j], j) for j in range(first, i + 1))])
    return [softmax_attention(of, x[i], i, seen) for i, seen in enumerate(past)]


def gating(of: Any, y: Tensor, m: Tensor) -> Tensor:
    """§4.2: normalise both with learned vectors, then the nonlinearity."""
    return rms(y, of.norms[0].weight) * torch.sigmoid(rms(m, of.norms[1].weight))


def persistent(module: LMM | MAC | SelfAttention) -> Tokens:
    return [] if module.persistent.tokens is None else list(module.persistent.tokens.detach())


def lmm(of: LMM, x: Tokens) -> Tokens:
    memory = Neural(of.memory)
    new = [*persistent(of), *x]  # Eq. 19
    return [memory(token) for token in new][len(new) - len(x) :]


def mac(of: MAC, x: Tokens) -> Tokens:
    memory, outputs, c = Neural(of.memory), [], of.segment
    for begin in range(0, len(x), c):
        segment = x[begin : begin + c]
        found = [dict(W) for W in memory.W]
        h = [memory.read(found, memory.queries(s), s) for s in segment]  # Eq. 21
        attended, after = [], []
        for i, s in enumerate(segment):
            visible = range(i + 1) if of.form == "causal" else range(len(segment))  # causal: h_j for j <= i
            new = [*((p, None) for p in persistent(of)), *((h[j], j - c) for j in visible)]  # Eq. 22
            new += [(segment[j], j) for j in range(i + 1)]
            attended.append(softmax_attention(of.attention, s, i, new))  # Eq. 23
        for y in attended:
            memory.write(y)  # Eq. 24
            after.append([dict(W) for W in memory.W])
        for i, y in enumerate(attended):
            W = after[i] if of.form == "causal" else memory.W  # causal: after token i's own write
            heads = list(y.view(of.memory.heads, -1))
            outputs.append(gating(of.gating, y, memory.read(W, [q / q.norm() for q in heads], y)))  # Eq. 25
    return outputs


def mag(of: MAG, x: Tokens) -> Tokens:
    prefix = persistent(of.inner)  # Eq. 26
    attended = attention(of.attention, x, prefix)  # Eq. 27
    return [gating(of.join, y, m) for y, m in zip(attended, lmm(of.inner, x), strict=True)]  # Eq. 28


def mal(of: MAL, x: Tokens) -> Tokens:
    memory = Neural(of.inner.memory)
    new = [*persistent(of.inner), *x]  # Eq. 29
    y = [memory(token) for token in new]  # Eq. 30
    count = len(new) - len(x)
    return attention(of.attention, y[count:], y[:count])  # Eq. 31


def parallel(of: Parallel, x: Tokens) -> Tokens:
    """LaCT (2505.23884) §3.2: window attention plus the scaled memory."""
    attended = attention(of.attention, x, persistent(of.inner))
    scale: Any = of.join.scale
    return [y + scale * m for y, m in zip(attended, lmm(of.inner, x), strict=True)]


def self_attention(of: SelfAttention, x: Tokens) -> Tokens:
    return attention(of.attention, x, persistent(of))


def weight_residual(of: Sequence[LMM], shares: Sequence[Tensor | None], segment: int, x: Tokens) -> Tokens:
    """Memories one after another; each starts a segment from its own weights plus a share of those of the one below.

    What is its own is what is left of its weights when the part from below, as it was added, is taken out. In the middle
    of a chunk the weights at which gradients are taken change in the same way.
    """
    below: list[list[dict[str, Tensor]]] = []
    for one, share in zip(of, shares, strict=True):
        memory, starts, outputs = Neural(one.memory), [], []
        for i, token in enumerate(x):
            s = i // segment
            if i % segment == 0 and share is not None:
                for h, W in [*enumerate(memory.W), *enumerate(memory.anchor)]:
                    for n in W:
                        own = W[n] if s == 0 else W[n] - share[h] * below[s - 1][h][n]
                        W[n] = own + share[h] * below[s][h][n]
            if i % segment == 0:
                starts.append([dict(W) for W in memory.W])
            outputs.append(memory(token))
        x, below = outputs, starts
    return x


LITERALS: dict[type, Callable[..., Tokens]] = {
    LMM: lmm,
    MAC: mac,
    MAG: mag,
    MAL: mal,
    Parallel: parallel,
    SelfAttention: self_attention,
}
"""The transcription of every mixer."""


def layer(of, x: Tokens) -> Tokens:
    """Llama's block: x + branch(norm(x)) for every mixer, then SwiGLU (MIRAS §5.3; the -H form has two mixers)."""
    for mixer, norm in zip(of.mixers, of.norms, strict=False):
        branch = LITERALS[type(mixer)](mixer, [rms(token, norm.weight) for token in x])
        x = [a + b for a, b in zip(x, branch, strict=True)]
    outputs = []
    for token in x:
        gate, value = (of.mlp.up.weight @ rms(token, of.norms[-1].weight)).chunk(2)
        outputs.append(token + of.mlp.down.weight @ (F.silu(gate) * value))
    return outputs

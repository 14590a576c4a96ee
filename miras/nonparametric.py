"""The memory that forgets nothing and learns nothing: all pairs are kept, and a kernel says which are near a query.

Shapes: B batch, H heads, T new tokens, S all tokens so far, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.state import MemoryState, Weights

Gates = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class KernelRegression(AssociativeMemory):
    r"""Softmax attention, $y_t=\arg\min_z\sum_{i\le t}\eta_ie^{q_t^\top k_i/\sqrt D}\|v_i-z\|^2$.

    The non-parametric row of MIRAS (arXiv 2504.13173) Table 1: a growing state in place of a recurrence. ``spec`` is the
    recurrence of which it is the limit, a matrix on the features of the truncated exponential kernel, and gives the
    rate $\eta_i$, the weight of a pair (one in attention as published). Calls, masks and splits are those of
    `AssociativeMemory`.

    Example:
        >>> from miras import MirasSpec
        >>> core = KernelRegression(MirasSpec(bias="dot", retention="none", algorithm="gd"))
        >>> q, k, v = torch.randn(3, 1, 5, 2, 4)
        >>> start = core.initial_state(core.random_memory(2, 4, 4), 1, 4, 4)
        >>> y, state = core(q, k, v, {"lr": 1.0}, start)
        >>> state.extra["k"].shape
        torch.Size([1, 2, 5, 4])
    """

    @property
    def main(self) -> AssociativeMemory:
        """The recurrence of which this is the limit."""
        return AssociativeMemory(self.spec, self.path, self.tolerance)

    def random_memory(self, heads: int, d_key: int, d_value: int, generator: torch.Generator | None = None) -> Weights:
        """No pairs yet, ``[H, 0, D]``."""
        return {"k": torch.empty(heads, 0, d_key), "v": torch.empty(heads, 0, d_value)}

    def initial_state(self, raw: Weights, batch: int, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        """The state before the first token, from pairs ``[H, S, D]`` shared by all rows."""
        dtype = torch.promote_types(raw["k"].dtype, torch.float32)
        held = {n: w.to(dtype).expand(batch, *w.shape) for n, w in raw.items()}
        return MemoryState({}, {}, {}, (0,) * batch, held | {"weight": torch.ones_like(held["k"][..., 0])})

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """As `AssociativeMemory`; tokens that the mask skips are pairs of weight zero."""
        if state is None:
            raise ValueError("pass state=memory.initial_state(memory.random_memory(...), ...)")
        if cu_seqlens is not None:
            raise ValueError("kernel regression takes packed documents as rows of a batch, with a mask")
        held = state.extra
        dtype, past = held["k"].dtype, held["k"].shape[2]
        rate = torch.as_tensor(gates["lr"], dtype=dtype, device=q.device).expand(q.shape[:3])
        weight = rate if mask is None else rate * mask[..., None]
        new = {"k": k, "v": v, "weight": weight}
        held = {n: torch.cat([held[n], x.to(dtype).transpose(1, 2)], 2) for n, x in new.items()}
        causal = torch.ones(q.shape[1], past + q.shape[1], dtype=torch.bool, device=q.device).tril(past)
        y = _attend(q.transpose(1, 2).to(dtype), held, causal).transpose(1, 2)
        if mask is not None:
            y = y * mask[..., None, None]
        return y.to(v.dtype), state._replace(extra=held)

    def read(self, state: MemoryState, q: Tensor, d_value: int) -> Tensor:
        """What it answers to ``[B, T, H, D]`` now, without writing."""
        everything = torch.ones((), dtype=torch.bool, device=q.device)
        return (
            _attend(q.transpose(1, 2).to(state.extra["k"].dtype), state.extra, everything).transpose(1, 2).to(q.dtype)
        )

    def surprise(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState) -> Tensor:
        """There is none."""
        raise ValueError("kernel regression keeps its pairs as they are: it has no inner loss")


def _attend(q: Tensor, held: Weights, visible: Tensor) -> Tensor:
    """The weighted mean of values ``[B, H, S, D]`` under the exponential kernel; zero where nothing is visible."""
    scores = q @ held["k"].mT / math.sqrt(q.shape[-1])
    weight = torch.where(visible, held["weight"].unsqueeze(-2), 0.0)
    top = (
        scores.masked_fill(weight == 0, -math.inf).amax(-1, keepdim=True) if scores.shape[-1] else scores.sum(-1, True)
    )
    near = weight * torch.where(weight > 0, scores - top.detach().nan_to_num(neginf=0.0), 0.0).exp()
    return near @ held["v"] / near.sum(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)

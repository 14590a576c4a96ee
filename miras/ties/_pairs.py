"""Keys, values and answers that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.gates import Gate
from miras.ties._base import Parameters, Tie, Tokens, ties


@ties.register("normalised")
@dataclass(frozen=True)
class Normalised(Tie):
    r"""The answer is a weighted mean of values, $y_t=W_tq_t/z_t^\top q_t$: one more column of values, all ones, sums the weights.

    Source: linear attention (arXiv 2006.16236) Eq. 16-20. The features of keys and queries must be positive.
    """

    def width(self, d_value: int) -> int:
        return d_value + 1

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        return x._replace(v=F.pad(x.v, (0, 1), value=1.0))

    def after(self, y: Tensor, x: Tokens, p: Parameters) -> Tensor:
        total = y[..., -1:]
        return y[..., :-1] / torch.where(total == 0, 1.0, total)  # a token that was skipped has no answer


@ties.register("bonus")
@dataclass(frozen=True)
class Bonus(Tie):
    r"""The token itself is read with a weight of its own, $y_t=\big(W_{t-1}+v_t(u\odot k_t)^\top\big)q_t$, $u$ learned.

    The memory must read ``previous``. Source: RWKV-6 (arXiv 2404.05892).
    """

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        return {"u": torch.ones(heads, d_key)}

    def after(self, y: Tensor, x: Tokens, p: Parameters) -> Tensor:
        return y + (x.q * p["u"] * x.k).sum(-1, keepdim=True) * x.v


@ties.register("closed_loop")
@dataclass(frozen=True)
class ClosedLoop(Tie):
    r"""A feedback of fixed strength $b=\sigma(\beta)$, of which the query sees less too: $q_t\leftarrow q_t-D\,b\,k_t$.

    $\beta$ and $D$ are learned, one a head. Source: Comba (arXiv 2506.02475), feedback and output correction.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"feedback"})

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        return {"beta": torch.ones(heads), "D": torch.ones(heads)}

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        feedback = torch.sigmoid(p["beta"]).expand(x.q.shape[:3])
        q = x.q - (p["D"] * feedback)[..., None] * x.k
        return x._replace(q=q, gates=x.gates | {"feedback": feedback})


@ties.register("erase_write")
@dataclass(frozen=True)
class EraseWrite(Tie):
    r"""Keys of their own for what is erased and what is written, from one key $k_t$ and a rate $a_t$ per key channel.

    The pairs $(\hat\kappa_t,0)$ with feedback 1 and learning rate $a_t$, and $(\tilde k_t,v_t)$ with feedback 0 and learning
    rate 1, where $\hat\kappa=k\odot\xi/\|k\odot\xi\|$, $\tilde k=k\odot(1+(a-1)\odot c)$ and $\xi$, $c$ are learned:
    $W_t=W_{t-1}(\mathrm{Diag}(\alpha_t)-\hat\kappa_t(a_t\odot\hat\kappa_t)^\top)+v_t\tilde k_t^\top$. The decay is
    $\log\alpha=-e^{-1/2}\sigma(\cdot)$. Source: RWKV-7 (arXiv 2503.14456).
    """

    gives: ClassVar[frozenset[str]] = frozenset({"lr", "feedback"})
    pairs: ClassVar[int | None] = 1

    @property
    def gates(self) -> Mapping[str, Gate]:
        decay = Gate("sigmoid", init=-0.01, per="key", scale=-0.6065306597126334)
        return {"erase": Gate("sigmoid", init=0.5, per="key"), "log_decay": decay}

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        return {"xi": torch.ones(heads, d_key), "c": torch.ones(heads, d_key)}

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        gates = dict(x.gates)
        erase = gates.pop("erase")
        removed = F.normalize(x.k * p["xi"], dim=-1, eps=1e-12)
        written = x.k * (1 + (erase - 1) * p["c"])
        lr = torch.stack([erase, torch.ones_like(erase)], -2)
        feedback = x.q.new_tensor([1.0, 0.0]).expand(*x.q.shape[:3], 2)
        pairs = {"k": torch.stack([removed, written], -2), "v": torch.stack([torch.zeros_like(x.v), x.v], -2)}
        return x._replace(**pairs, gates=gates | {"lr": lr, "feedback": feedback})

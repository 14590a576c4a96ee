"""Gates that are numbers, follow a schedule, or come from other gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.gates import Gate
from miras.ties._base import Parameters, Tie, Tokens, ties


@ties.register("constant")
@dataclass(frozen=True)
class Constant(Tie):
    r"""A gate that is the same number everywhere: $\eta_t=1$ of linear attention.

    Args:
        gate: which one.
        value: the number; the log of the fraction kept for ``log_decay``.
    """

    gate: str = "lr"
    value: float = 1.0

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.gate})

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        return x._replace(gates=x.gates | {self.gate: x.q.new_full((), self.value)})


@ties.register("schedule")
@dataclass(frozen=True)
class Schedule(Tie):
    r"""A decay that is fixed, and different in every head $h=0,\dots,H-1$.

    ``retnet``: $\alpha_h=1-2^{-5-h}$ (RetNet, arXiv 2307.08621). ``lightning``: $\alpha_h=e^{-\frac{8h}H(1-\lambda)}$ with $\lambda$ how
    far up the layer is (Lightning Attention-2, 2401.04658): its first head forgets nothing.

    Args:
        kind: which schedule.
        depth: $\lambda$ in [0, 1), the layer's number over the number of layers; of ``lightning``.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"log_decay"})
    kind: Literal["retnet", "lightning"] = "retnet"
    depth: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("retnet", "lightning"):
            raise ValueError(f"kind must be 'retnet' or 'lightning', got {self.kind!r}")
        if not 0 <= self.depth < 1:
            raise ValueError(f"depth must lie in [0, 1), got {self.depth}")

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        heads = x.q.shape[2]
        head = torch.arange(heads, dtype=x.q.dtype, device=x.q.device)
        match self.kind:
            case "retnet":
                log_decay = torch.log1p(-torch.exp2(-5 - head))
            case "lightning":
                log_decay = -8 / heads * (1 - self.depth) * head
        return x._replace(gates=x.gates | {"log_decay": log_decay.expand(*x.q.shape[:3])})


@ties.register("discretised")
@dataclass(frozen=True)
class Discretised(Tie):
    r"""A step size sets both what is kept and what is written, $\log\alpha_t=-e^A\Delta_t$ and $\eta_t=\Delta_t$.

    ``head``: one of each a head, as in Mamba-2 (arXiv 2405.21060) Eq. 2. ``entry``: a step size for every value
    channel $o$ and a rate for every entry of the state, $\log\alpha_{t,io}=-e^{A_{io}}\Delta_{t,o}$, as in Mamba
    (2312.00752) §3.2, with the Euler step its code takes for the input. $A$ is learned.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"log_decay"})
    per: Literal["head", "entry"] = "head"

    def __post_init__(self) -> None:
        if self.per not in ("head", "entry"):
            raise ValueError(f"per must be 'head' or 'entry', got {self.per!r}")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": Gate("softplus", init=0.01, per="head" if self.per == "head" else "value")}

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        if self.per == "head":  # rates from 1 to 16
            return {"log_rate": torch.linspace(0, math.log(16), heads)}
        return {"log_rate": torch.arange(1.0, d_key + 1).log()[:, None].expand(heads, d_key, d_value).clone()}

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        step = x.gates["lr"] if self.per == "head" else x.gates["lr"][..., None, :]
        return x._replace(gates=x.gates | {"log_decay": -p["log_rate"].exp() * step})


@ties.register("outer")
@dataclass(frozen=True)
class Outer(Tie):
    r"""A decay of rank one, $\log\alpha_{t,io}=\log a_{t,i}+\log b_{t,o}$.

    Source: decaying fast weights (arXiv 2210.04243).
    """

    gives: ClassVar[frozenset[str]] = frozenset({"log_decay"})

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {f"log_decay_{per}": Gate("log_sigmoid", init=0.99, per=per) for per in ("key", "value")}

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        gates = dict(x.gates)
        by_key, by_value = gates.pop("log_decay_key"), gates.pop("log_decay_value")
        return x._replace(gates=gates | {"log_decay": by_key[..., None] + by_value[..., None, :]})


@ties.register("complement")
@dataclass(frozen=True)
class Complement(Tie):
    r"""What is forgotten makes room for what is written: the key is $1-\alpha_t$, whatever the key was.

    Source: HGRN (arXiv 2311.04823), HGRN2 (2404.07904).
    """

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        return x._replace(k=-torch.expm1(x.gates["log_decay"]))


@ties.register("diagonal")
@dataclass(frozen=True)
class Diagonal(Tie):
    r"""What a proximal step of the squared error erases, channel by channel of the key.

    $\epsilon_{t,o}=\beta_{t,o}/(1+\beta_{t,o}\|k_t\|^2)$ is the learning rate of every value channel $o$, and
    $1-\epsilon_{t,o}k_{t,i}^2$, the diagonal of $I-\epsilon kk^\top$, the decay of every entry. Source: Longhorn
    (arXiv 2407.14207), the form it trains with.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"log_decay"})

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        beta, square = x.gates["lr"][..., None, :], x.k.square()[..., None]
        norm = square.sum(-2, keepdim=True)
        # 1 - b k_i^2 / (1 + b |k|^2) = (1 + b (|k|^2 - k_i^2)) / (1 + b |k|^2), which cannot cancel
        log_decay = torch.log1p(beta * (norm - square).clamp_min(0)) - torch.log1p(beta * norm)
        lr = (beta / (1 + beta * norm))[..., 0, :]
        return x._replace(gates=x.gates | {"lr": lr, "log_decay": log_decay})

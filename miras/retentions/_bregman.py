r"""Mirror descent with an elementwise mirror: MIRAS Variant 5.

For $F(W)=\sum f(W_{ij})$ a step that stays close in the Bregman divergence of $F$, with a global
retention proportional to $F$, is $W_t=(f')^{-1}(\alpha_tf'(W_{t-1})-\eta_tg_t)$: the accumulator is
$A=f'(W)$ and the link is $(f')^{-1}$. Decay pulls towards $\mathrm{link}(0)$.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miras.gates import Gate, Per
from miras.retentions._base import (
    Context,
    Retention,
    check_per,
    check_positive,
    decay_gate,
    retentions,
)


@retentions.register("logistic")
@dataclass(frozen=True)
class Logistic(Retention):
    r"""Weights in (0, 1), $W_t=\sigma(A_t)$: mirror descent in the Fermi-Dirac entropy.

    $f(w)=w\ln w+(1-w)\ln(1-w)$, so $W_t=\sigma\big(\ln\tfrac{W_{t-1}}{1-W_{t-1}}-\eta_tg_t\big)$;
    decay pulls towards ½. Source: MIRAS (arXiv 2504.13173) §5.2 Variant 5 (there $W_t$ is printed
    inside the logarithm where $W_{t-1}$ is meant); the decay is an extension of ours.

    Args:
        per: one decay per head, key channel or value channel.
    """

    link_is_identity: ClassVar[bool] = False
    per: Per = "head"

    def __post_init__(self) -> None:
        check_per(self)

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

    def link(self, memory: Tensor, context: Context) -> Tensor:
        return memory.sigmoid()


@retentions.register("tanh")
@dataclass(frozen=True)
class Tanh(Retention):
    r"""Weights in (-1, 1), $W_t=\tanh(A_t)$: the signed sibling of ``logistic``.

    $f'=\mathrm{artanh}$, so $W_t=\tanh(\mathrm{artanh}\,W_{t-1}-\eta_tg_t)$; decay pulls towards 0.
    Near 0 it is plain decay. Extension of ours, after MIRAS (arXiv 2504.13173) §5.2 Variant 5.

    Args:
        per: one decay per head, key channel or value channel.
    """

    link_is_identity: ClassVar[bool] = False
    per: Per = "head"

    def __post_init__(self) -> None:
        check_per(self)

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

    def link(self, memory: Tensor, context: Context) -> Tensor:
        return memory.tanh()


@retentions.register("exponentiated")
@dataclass(frozen=True)
class Exponentiated(Retention):
    r"""Positive weights, $W_t=e^{A_t}$: exponentiated gradient without normalisation.

    $f(w)=w\ln w-w$, so $W_t=W_{t-1}\odot e^{-\eta_tg_t}$; decay pulls towards 1. Accumulators above
    the limit read as the limit, and commit to it, so that they leave it again at the first gradient
    that points back. Source: MIRAS (arXiv 2504.13173) §5.2 Variant 5; decay and limit are ours.

    Args:
        limit: largest exponent read, in (0, 80]; weights lie in $[0,e^{\mathrm{limit}}]$.
        per: one decay per head, key channel or value channel.
    """

    link_is_identity: ClassVar[bool] = False
    limit: float = 20.0
    per: Per = "head"

    def __post_init__(self) -> None:
        check_positive(self, "limit")
        check_per(self)
        if self.limit > 80:
            raise ValueError(f"exponentiated needs limit <= 80 (e^88 overflows), got {self.limit}")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

    def link(self, memory: Tensor, context: Context) -> Tensor:
        return memory.clamp_max(self.limit).exp()

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        return memory.clamp_max(self.limit)

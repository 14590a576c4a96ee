r"""Hard forgetting: $\ell_1$ beside $\ell_2$, which sets small weights to zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.gates import Gate, Per
from miras.retentions._base import (
    Context,
    Retention,
    check_choice,
    check_per,
    decay_gate,
    retentions,
)


@retentions.register("elastic_net")
@dataclass(frozen=True)
class ElasticNet(Retention):
    r"""Soft thresholding, $S_\gamma(z)=\mathrm{sign}(z)\max(0,|z|-\gamma)$, forgets small weights.

    ``proximal`` (Eq. 22, learning-retaining) thresholds the memory itself every step,

    $$W_t=S_{\gamma_t}(\alpha_tW_{t-1}-\eta_tg_t),$$

    the minimiser of $\langle g,W\rangle+\tfrac1{2\theta}\|W-W_{t-1}\|^2+\tfrac1{2\beta}\|W\|^2+
    \tfrac1a\|W\|_1$ with $\alpha=\tfrac\beta{\beta+\theta}$, $\eta=\alpha\theta$, $\gamma=\eta/a$.
    Inside a chunk the thresholds add up, $\sum_i\gamma_i\prod_{j=i+1}^t\alpha_j$ (the same function
    while no weight changes sign, and at chunk size 1), and the commit applies them.
    ``ftrl`` (Eq. 23) thresholds what is read of an accumulator that remembers everything,
    $A_t=\alpha_tA_{t-1}-\eta_tg_t$, $W_t=S_{\gamma_t}(A_t)$; the paper has $\alpha=1$.
    Source: MIRAS (arXiv 2504.13173) §5.2 Variants 2 and 3.

    Args:
        form: ``ftrl`` or ``proximal``.
        smooth: replaces $S_\gamma(z)$ by the paper's $|z|\arctan(z/\gamma)/(\pi/2)$, whose gradient
            vanishes at 0 only, but which zeroes nothing and does not shrink what is large.
        per: one decay per head, key channel or value channel; the threshold is per head.
    """

    link_is_identity: ClassVar[bool] = False
    form: Literal["ftrl", "proximal"] = "ftrl"
    smooth: bool = False
    per: Per = "head"

    def __post_init__(self) -> None:
        check_choice(self, "form", "ftrl", "proximal")
        check_per(self)

    @property
    def accumulates_threshold(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.form == "proximal"

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {**decay_gate(self.per), "threshold": Gate("softplus", init=1e-3)}

    def link(self, memory: Tensor, context: Context) -> Tensor:
        threshold = context.threshold
        assert threshold is not None, "elastic_net declares a threshold gate, so a context has one"
        if self.smooth:
            ratio = memory / threshold.clamp_min(1e-12)  # its square must not overflow
            shrunk = memory.abs() * ratio.atan() * (2 / math.pi)
        else:
            shrunk = memory.sign() * (memory.abs() - threshold).relu()
        # Right after a commit the threshold is zero: the identity then, in its gradient at 0 too.
        return torch.where(threshold > 0, shrunk, memory)

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        return self.link(memory, context) if self.form == "proximal" else memory

"""Retention without a link: the weights are the accumulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from miras.gates import Gate, Measure
from miras.retentions._base import Retention, check_choice, decay_gate, retentions


@retentions.register("none")
@dataclass(frozen=True)
class NoRetention(Retention):
    r"""Nothing is forgotten on purpose, $A_t=A_{t-1}-U_t$, $W_t=A_t$.

    Minimises $\langle g,W\rangle+\tfrac1{2\eta}\|W-W_{t-1}\|^2$: linear attention, DeltaNet and
    TTT in the reading of MIRAS (arXiv 2504.13173) Table 1. Has no gates.
    """


@retentions.register("l2")
@dataclass(frozen=True)
class L2Decay(Retention):
    r"""Decay, $A_t=\alpha_tA_{t-1}-U_t$, $W_t=A_t$: local and global $\ell_2$ retention.

    Minimises $\langle g,W\rangle+\tfrac1{2\theta}\|W-W_{t-1}\|^2+\tfrac1{2\beta}\|W\|^2$ with
    $\alpha=\beta/(\beta+\theta)$ and $\eta=\alpha\theta$ (the paper prints the last term without
    the ½, which would make it $\beta/(\beta+2\theta)$). Every pair of $\alpha$ and $\eta$ is
    reached. Source: MIRAS (arXiv 2504.13173) §3.2, Titans (2501.00663) Eq. 13.

    Args:
        per: one decay per head, or per key channel (GLA, KDA), or per value channel, or per entry, that is one for each
            pair of them (Mamba, decaying fast weights).
        gradient_at: ``anchor`` measures the surprise before forgetting (Titans); ``decayed`` after
            (Gated DeltaNet).
    """

    per: Measure = "head"
    gradient_at: Literal["anchor", "decayed"] = "anchor"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_choice(self, "per", "head", "key", "value", "entry")
        check_choice(self, "gradient_at", "anchor", "decayed")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

r"""Memory stability in $\ell_q$: the retention gate of Moneta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from miras.gates import Gate, Per
from miras.retentions._base import (
    Context,
    Retention,
    check_choice,
    check_per,
    check_positive,
    decay_gate,
    retentions,
)


@retentions.register("lq")
@dataclass(frozen=True)
class Lq(Retention):
    r"""An $\ell_q$ norm holds the memory together, $W_t=A_t/\|A_t\|_q^{q-2}$ as Moneta prints it.

    With $s=q/(q-1)\in(1,2]$, the minimiser of $-\langle A,W\rangle+\tfrac1{2(s-1)}\|W\|_s^2$ is

    $$W=\frac1{q-1}\,\frac{\mathrm{sign}(A)\odot|A|^{q-1}}{\|A\|_q^{q-2}},\qquad
      \|A\|_q=\Big(\textstyle\sum|A|^q+\epsilon^q\Big)^{1/q}.$$

    The printed link lacks the elementwise power: no rescaling makes it a minimiser. It has degree
    $3-q$, so at $q=4$ *decay makes the memory larger* ($W$ has root mean square near
    $1/(\sqrt{3nm}\,\sigma_A)$ for an $n\times m$ matrix), and a dual step need not lower the loss.
    The exact link has degree 1. Both are the identity at $q=2$. The norm is that of one matrix of
    one head. Source: MIRAS (arXiv 2504.13173) §5.2 Variant 4 and Eq. 24-25; ``exact`` and
    ``mean`` are ours.

    Args:
        q: the exponent of the norm of $A$, dual to that of the memory; at least 2, Moneta's is 4.
        form: ``paper`` or ``exact``, see above.
        norm: $\|A\|_q^q$ is the ``sum`` of $|A|^q$ as printed, or their ``mean``, which keeps the
            scale of $W$ independent of the size of the matrix.
        link_at: ``token`` reads $\mathrm{link}(A_t)$; ``chunk`` divides by the norm of the anchor,
            renewed at the end of the chunk as Moneta is trained (``paper`` only).
        eps: $\epsilon$ > 0, a floor of the norm, so that an empty memory reads as zero; the paper
            has none. At q = 4 no norm of $W$ exceeds $1/\epsilon$; $\epsilon^{2-q}$, the slope of the
            printed link at 0, must stay below 1e30.
        per: one decay per head, key channel or value channel.

    Example:
        >>> import torch
        >>> memory = torch.tensor([[3.0, -1.0]])
        >>> Lq(form="paper").link(memory, Context(dims=2, anchor=memory))  # A / sqrt(82)
        tensor([[ 0.3313, -0.1104]])
    """

    q: float = 4.0
    form: Literal["paper", "exact"] = "paper"
    norm: Literal["sum", "mean"] = "sum"
    link_at: Literal["token", "chunk"] = "token"  # type: ignore[assignment]
    eps: float = 1e-1
    per: Per = "head"

    def __post_init__(self) -> None:
        check_choice(self, "form", "paper", "exact")
        check_choice(self, "norm", "sum", "mean")
        check_choice(self, "link_at", "token", "chunk")
        check_positive(self, "eps")
        check_per(self)
        if not 2 <= self.q < math.inf:
            primal = 1 < self.q < 2
            hint = f"; the dual of {self.q:g} is q={self.q / (self.q - 1):g}" if primal else ""
            raise ValueError(f"lq needs a finite dual exponent q >= 2, got {self.q!r}{hint}")
        if (self.q - 2) * -math.log10(self.eps) > 30:
            raise ValueError(
                f"lq with q={self.q} and eps={self.eps} has the slope eps^(2-q) > 1e30 at zero: "
                "float32 overflows; pass a larger eps"
            )
        if self.link_at == "chunk" and self.form != "paper":
            raise ValueError(
                "lq needs link_at='token' with form='exact': its link is no normalisation, "
                "so there is nothing to freeze for a chunk"
            )

    @property
    def link_is_identity(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.q == 2

    @property
    def link_is_monotone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.form == "exact" or self.q == 2

    @property
    def link_is_normaliser(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.form == "paper"

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

    def link(self, memory: Tensor, context: Context) -> Tensor:
        if self.q == 2:  # said aloud, since |A|^(q-2) has no derivative at A = 0
            return memory
        if self.form == "paper":
            return memory * self.multiplier(memory, context)
        unit, norm, scale = self._norm(memory, context)
        power = unit.sign() * unit.abs() ** (self.q - 1)
        return power * norm ** (2 - self.q) * (scale / (self.q - 1))

    def multiplier(self, memory: Tensor, context: Context) -> Tensor:
        if self.form == "exact":
            return super().multiplier(memory, context)
        _, norm, scale = self._norm(memory, context)
        return (norm * scale) ** (2 - self.q)

    def slope(self, memory: Tensor, context: Context) -> Tensor | None:
        if self.form == "exact":
            return None
        _, norm, scale = self._norm(memory, context)
        size = norm * scale  # the slope is size^(2-q), what is read about size^(3-q)
        return size ** (2 - self.q) / (size ** (3 - self.q)).clamp_min(1.0)

    def _norm(self, memory: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """``A / scale``, the norm of that, and a scale at which no power of it overflows."""
        weight = tuple(range(-context.dims, 0))
        scale = memory.abs().amax(weight, keepdim=True).clamp_min(self.eps).detach()
        unit = memory / scale
        powers = unit.abs() ** self.q
        total = (powers.sum if self.norm == "sum" else powers.mean)(weight, keepdim=True)
        return unit, (total + (self.eps / scale) ** self.q) ** (1 / self.q), scale

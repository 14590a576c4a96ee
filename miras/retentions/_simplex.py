r"""Memories on a simplex: every slice of a weight is positive and sums to a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.gates import Gate, Per
from miras.retentions._base import (
    Axis,
    Context,
    Retention,
    check_axis,
    check_choice,
    check_per,
    decay_gate,
    retentions,
    slice_dims,
)


@retentions.register("kl")
@dataclass(frozen=True)
class KLDecay(Retention):
    r"""Kullback-Leibler divergence and Shannon entropy, $W_t=c\,\mathrm{softmax}(A_t)$: Memora.

    Minimises $\langle g,W\rangle+\tfrac1\theta\sum W\log(W/W_{t-1})+\tfrac1\beta\sum W\log W$ on
    the simplex, with $\alpha=\eta/\theta$ and $\eta=1/(\tfrac1\theta+\tfrac1\beta)$:

    $$W_t=c\,\mathrm{softmax}(\alpha_t\log W_{t-1}-\eta_tg_t).$$

    The commit is log-softmax: it changes no weight and keeps logits bounded. (It does matter to a
    decay per channel along the slice, which tells logits from their shifts: that decay acts on
    $\log W$ of the last commit.) Start from distinct logits, a uniform slice makes all hidden units
    identical for ever.
    Source: MIRAS (arXiv 2504.13173) Eq. 19-21 and 27, which name neither the axis nor, in 27, $c$.

    Args:
        axis: the axis along which weights sum to $c$; ``in`` makes every output of a matrix an
            average of its inputs.
        scale: $c$ > 0, or ``size`` for the length of the slice (a mean weight of 1).
        per: one decay per head, key channel or value channel.

    Example:
        >>> import torch
        >>> memory = torch.zeros(4, 2)
        >>> KLDecay(axis="in").link(memory, Context(dims=2, anchor=memory)).sum(-2)
        tensor([1., 1.])
    """

    link_is_identity: ClassVar[bool] = False
    axis: Axis = "in"
    scale: float | Literal["size"] = 1.0
    per: Per = "head"

    def __post_init__(self) -> None:
        check_axis(self)
        check_scale(self)
        check_per(self)

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per)

    def initial(self, raw: Tensor, dims: int) -> Tensor:
        return over_slices(torch.log_softmax, raw, slice_dims(self.axis, dims))

    def link(self, memory: Tensor, context: Context) -> Tensor:
        slices = slice_dims(self.axis, context.dims)
        return total(self.scale, memory, slices) * over_slices(torch.softmax, memory, slices)

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        return over_slices(torch.log_softmax, memory, slice_dims(self.axis, context.dims))


POWERS = {"reverse_kl": 1, "hellinger": 2, "chi2": -1}
"""The $p$ for which $(f')^{-1}(f'(1)-u)=(1+\\mathrm{sign}(p)\\,u)^{-p}$."""


@retentions.register("f_divergence")
@dataclass(frozen=True)
class FDivergence(Retention):
    r"""Stays close by $f$-divergence, $W_t=W_{t-1}\odot\mathfrak g(-\zeta_t-\eta_tg_t)$.

    Minimises $\langle\sum\eta g,W\rangle+\sum W_cf(W/W_c)$ over $W\ge0$, $\sum W=c$ per slice, from
    the anchor $W_c$, with $\mathfrak g=(f')^{-1}$ and $\zeta$ the multiplier of the sum:

    | ``divergence`` | $f(\tau)$ | $W$ with $u=\zeta+\sum\eta g$ |
    |---|---|---|
    | ``reverse_kl`` | $-\ln\tau$ | $W_c/(1+u)$ |
    | ``hellinger`` | $2(1-\sqrt\tau)$ | $W_c/(1+u)^2$ |
    | ``chi2`` | $\tfrac12(\tau-1)^2$ | $W_c\max(0,1-u)$ |

    (The fourth of the family, KL, is ``kl`` at decay 1.) The accumulator starts a chunk as the
    weights themselves and loses the steps, so $\sum\eta g=W_c-A$; the commit makes it the weights
    again. There is no decay. Weights below 3e-10 $c$ (in float32) count as that, so that
    nothing is lost for ever. Source: MIRAS (arXiv 2504.13173) Eq. 18; the instances are ours.

    Args:
        divergence: ``reverse_kl``, ``hellinger`` or ``chi2``.
        axis: the axis along which weights sum to $c$.
        scale: $c$ > 0, or ``size`` for the length of the slice (a mean weight of 1).

    Example:
        >>> import torch
        >>> anchor = torch.tensor([0.25, 0.75])
        >>> gate = FDivergence(divergence="chi2")
        >>> gate.link(anchor - torch.tensor([1.0, 0.0]), Context(dims=1, anchor=anchor))
        tensor([0.0625, 0.9375])
    """

    link_is_identity: ClassVar[bool] = False
    divergence: Literal["reverse_kl", "hellinger", "chi2"] = "reverse_kl"
    axis: Axis = "in"
    scale: float | Literal["size"] = 1.0

    def __post_init__(self) -> None:
        check_choice(self, "divergence", *POWERS)
        check_axis(self)
        check_scale(self)

    def initial(self, raw: Tensor, dims: int) -> Tensor:
        slices = slice_dims(self.axis, dims)
        return total(self.scale, raw, slices) * over_slices(torch.softmax, raw, slices)

    def link(self, memory: Tensor, context: Context) -> Tensor:
        slices = slice_dims(self.axis, context.dims)
        c = total(self.scale, memory, slices)
        # Ratios above the fourth root of the largest number could not be differentiated twice.
        anchor = context.anchor.clamp_min(c * torch.finfo(memory.dtype).tiny ** (1 / 4))
        weights = nearest(anchor, context.anchor - memory, c, POWERS[self.divergence], slices)
        return weights * (c / weights.sum(slices, keepdim=True))  # a large step leaves rounding

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        return self.link(memory, context)


def nearest(anchor: Tensor, step: Tensor, c: float, power: int, slices: tuple[int, ...]) -> Tensor:
    r"""The $W=W_c\odot(1+\mathrm{sign}(p)(\zeta+\mathrm{step}))^{-p}$ that sums to $c$.

    The root is sought in $y=1+\mathrm{sign}(p)(\zeta+\min\mathrm{step})$, the base of the weight
    that grows most; the other bases are a gap away. The sum to the power $-1/p$ is concave in $y$
    (a power mean; for p = -1 the sum itself, convex), so that Newton's method for it cannot
    overshoot when it starts where the first single weight would reach $c$. Usually it needs 5
    steps; weights across 60 orders of magnitude took at most 20.
    """
    sign = 1 if power > 0 else -1
    gap = sign * (step - step.amin(slices, keepdim=True).detach())

    def newton(y: Tensor) -> Tensor:
        base = (y + gap).clamp_min(0)
        mass = (anchor * base**-power).sum(slices, keepdim=True)
        slope = (anchor * base ** (-power - 1) * (base > 0)).sum(slices, keepdim=True)
        return y + mass * ((mass / c) ** (1 / power) - 1) / slope

    with torch.no_grad():
        y = sign * (sign * ((anchor / c) ** (1 / power) - gap)).amax(slices, keepdim=True)
        for _ in range(20):
            y = newton(y)
    # From a constant root, one Newton step has the exact first derivatives, two the second.
    y = newton(newton(y))
    return anchor * (y + gap).clamp_min(0) ** -power


def total(scale: float | Literal["size"], memory: Tensor, slices: tuple[int, ...]) -> float:
    """What a slice sums to."""
    if isinstance(scale, str):
        return float(math.prod([memory.shape[d] for d in slices]))  # a list: compilers know no generators here
    return scale


def over_slices(map_: Callable[[Tensor, int], Tensor], memory: Tensor, slices: tuple[int, ...]) -> Tensor:
    """A map along one dimension applied along a slice: one axis of the weight, or all of it."""
    if len(slices) == 1:
        return map_(memory, slices[0])
    return map_(memory.flatten(slices[0]), -1).reshape(memory.shape)


def check_scale(retention: KLDecay | FDivergence) -> None:
    """Raise ValueError unless the sum of a slice is a positive number or its size."""
    c = retention.scale
    if c != "size" and (isinstance(c, str) or not 0 < c < math.inf):
        raise ValueError(f"{retention.name} needs a finite scale > 0 or 'size', got {c!r}")

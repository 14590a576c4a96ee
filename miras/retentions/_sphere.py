"""Memories on a sphere: every slice keeps its length, so that writing is forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from miras.gates import Gate, Per
from miras.retentions._base import (
    Axis,
    Context,
    Retention,
    check_axis,
    check_choice,
    check_per,
    check_positive,
    decay_gate,
    retentions,
    slice_dims,
)


@retentions.register("weight_norm")
@dataclass(frozen=True)
class WeightNorm(Retention):
    r"""Every slice keeps the length it started with, $W_t=\|W_0\|\,A_t/\|A_t\|$: LaCT.

    A slice that starts at zero stays within ``eps`` of it. Source: LaCT (arXiv 2505.23884), official
    code, which adds 1e-5 to the norm; with the floor here normalising twice is the same as once.

    Args:
        axis: ``in`` normalises the weights into one unit (LaCT), ``out`` those out of one, ``all``
            the whole matrix.
        form: ``post`` goes on from the normalised memory at the end of a chunk (LaCT's default),
            ``pre`` from the accumulator, whose growing length slows it down.
        link_at: ``token`` reads $\mathrm{link}(A_t)$; ``chunk`` divides by the norms of the anchor.
        eps: floor > 0 of all lengths.
        decays: whether there is a decay at all; LaCT has none.
        per: one decay per head, key channel or value channel.
    """

    link_is_identity: ClassVar[bool] = False
    link_is_normaliser: ClassVar[bool] = True
    axis: Axis = "in"
    form: Literal["post", "pre"] = "post"
    link_at: Literal["token", "chunk"] = "token"  # type: ignore[assignment]
    eps: float = 1e-6
    decays: bool = True
    per: Per = "head"

    def __post_init__(self) -> None:
        check_axis(self)
        check_choice(self, "form", "post", "pre")
        check_choice(self, "link_at", "token", "chunk")
        check_positive(self, "eps")
        check_per(self)
        if not self.decays and self.per != "head":
            raise ValueError(f"weight_norm with decays=False has no decay per {self.per}; leave per at 'head'")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return decay_gate(self.per) if self.decays else {}

    def start(self, memory: Tensor, dims: int) -> Tensor:
        return inverse_norm(memory, slice_dims(self.axis, dims), self.eps).reciprocal()

    def link(self, memory: Tensor, context: Context) -> Tensor:
        return memory * self.multiplier(memory, context)

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        return self.link(memory, context) if self.form == "post" else memory

    def multiplier(self, memory: Tensor, context: Context) -> Tensor:
        assert context.start is not None, "weight_norm returns a start, so a context has one"
        return context.start * inverse_norm(memory, slice_dims(self.axis, context.dims), self.eps)


@retentions.register("orthogonal")
@dataclass(frozen=True)
class Orthogonal(Retention):
    r"""Rows are slots, read normalised and written orthogonally to themselves: Lattice.

    $$W=\hat s=\frac s{\|s\|},\qquad s_t=s_{t-1}-\frac1{\|s\|}(I-\hat s\hat s^\top)\,U_t$$

    for every row $s$ of $A$, with $\hat s$ that of the anchor: $U$ is the update for the rows that
    are read, and the projection is the chain rule of the normalisation. A write replaces what it
    must and no more, so there is no decay; rows only grow, and steps shrink with them.
    Source: Lattice (arXiv 2504.05646), whose printed equations we have not seen; derived.

    Args:
        eps: floor of the length of a row > 0, which bounds the step of an empty slot.
    """

    pulls: ClassVar[bool] = True
    link_is_identity: ClassVar[bool] = False
    link_is_normaliser: ClassVar[bool] = True
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_positive(self, "eps")

    def link(self, memory: Tensor, context: Context) -> Tensor:
        return memory * self.multiplier(memory, context)

    def multiplier(self, memory: Tensor, context: Context) -> Tensor:
        return inverse_norm(memory, (-1,), self.eps)

    def pull(self, update: Tensor, context: Context) -> Tensor:
        inverse = inverse_norm(context.anchor, (-1,), self.eps)
        unit = context.anchor * inverse
        return (update - unit * (unit * update).sum(-1, keepdim=True)) * inverse


def inverse_norm(memory: Tensor, slices: tuple[int, ...], eps: float) -> Tensor:
    """One over the length of every slice, at most ``1 / eps``; all derivatives are finite."""
    return memory.square().sum(slices, keepdim=True).clamp_min(eps**2).rsqrt()

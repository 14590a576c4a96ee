"""The contract of a retention gate, its registry, and what the components share."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from miras.gates import Gate, Measure
from miras.registry import Component, Registry

Axis = Literal["in", "out", "all"]
"""How a weight falls into slices: a matrix ``[in, out]`` has one slice for each output (``in``) or
each input (``out``), or is one slice (``all``). A vector is one slice. Of any other tensor, ``in``
and ``out`` are the last two dimensions.
"""


class Context(NamedTuple):
    """What a link may look at beside the accumulator ``A`` of shape ``[..., *weight]``.

    Attributes:
        dims: number of trailing dimensions that belong to the weight (2 for a matrix).
        anchor: ``A`` at the last chunk boundary, broadcastable to ``A``.
        start: what `Retention.start` returned for this weight, broadcastable to ``A``, or None.
        threshold: for retentions that declare a ``threshold`` gate, its value (or accumulated
            value) broadcastable to ``A``; None otherwise.
    """

    dims: int
    anchor: Tensor
    start: Tensor | None = None
    threshold: Tensor | None = None


@dataclass(frozen=True)
class Retention(Component, ABC):
    """Base of all retention gates. The defaults are those of plain gradient descent."""

    link_is_identity: ClassVar[bool] = True
    """Claims that `link`, `commit` and `pull` change nothing."""
    link_is_monotone: ClassVar[bool] = True
    """Claims that the link is the gradient of a convex function: dual descent lowers the loss."""
    link_is_normaliser: ClassVar[bool] = False
    """Claims ``link(A) = A * multiplier(A)``: ``link_at="chunk"`` can freeze the multiplier."""
    pulls: ClassVar[bool] = False
    """Claims that `pull` is not the identity."""
    accumulates_threshold: ClassVar[bool] = False
    """Claims that thresholds add up along a chunk, decayed like the memory, until the commit."""
    triton_link: ClassVar[Any] = None
    """An elementwise link for kernels, ``@triton.jit (a, constants) -> w``, tiles of a matrix in float32.

    ``constants`` is `triton_constants`. With a ``threshold`` gate it is ``(a, threshold, constants) -> w``, one number for
    the tile. Where thresholds accumulate, `commit` is taken for this link, which at a threshold of zero is the identity,
    in its gradients too. None runs in PyTorch.
    """
    triton_link_vjp: ClassVar[Any] = None
    """Its pull-back, ``@triton.jit (a, d_w, constants) -> d_a``, a tile like ``a``.

    With a ``threshold`` gate, ``(a, threshold, d_w, constants) -> (d_a, d_threshold)``, two such tiles; the second is
    added up.
    """
    triton_key: ClassVar[str]
    """Where the class is defined: what stands for it in the arguments of operators, in other processes too."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.triton_key = f"{cls.__module__}.{cls.__qualname__}"
        for names, claim, without in ((("link", "commit"), "link_is_identity", True), (("pull",), "pulls", False)):
            for name in names:
                if getattr(cls, claim) is without and getattr(cls, name) is not getattr(Retention, name):
                    raise TypeError(
                        f"{cls.__name__} has a {name} of its own, which nothing would call while it claims "
                        f"{claim} = {without}: set {claim} = {not without} in the class"
                    )

    @property
    def gates(self) -> Mapping[str, Gate]:
        """The gates this retention wants; ``log_decay`` is the log of the fraction kept."""
        return {}

    @property
    def triton_constants(self) -> tuple[float, ...]:
        """Numbers for the Triton functions, compiled in."""
        return ()

    @property
    def gradient_at(self) -> Literal["anchor", "decayed"]:
        """Whether the inner gradient is taken at the anchor or there after this token's decay."""
        return "anchor"

    @property
    def link_at(self) -> Literal["token", "chunk"]:
        """Whether a token reads ``link(A_t)``, or ``A_t`` times the multiplier of the anchor."""
        return "token"

    def initial(self, raw: Tensor, dims: int) -> Tensor:
        """The dual start ``A_0`` from an unconstrained parameter of the same shape."""
        return raw

    def start(self, memory: Tensor, dims: int) -> Tensor | None:
        """A constant of ``A_0`` that links need later (the radius of a sphere), or None."""
        return None

    def link(self, memory: Tensor, context: Context) -> Tensor:
        """Weights from the accumulator, ``[..., *weight]`` to the same shape."""
        return memory

    def slope(self, memory: Tensor, context: Context) -> Tensor | None:
        """How much the link magnifies a small step, a bound of a weight as a whole, broadcastable to ``A``; used by ``step_bound``.

        None where it never does.
        """
        return None

    def commit(self, memory: Tensor, context: Context) -> Tensor:
        """The accumulator with which the next chunk starts."""
        return memory

    def multiplier(self, memory: Tensor, context: Context) -> Tensor:
        """For a normaliser: ``link(A) / A``, broadcastable to ``A``."""
        raise NotImplementedError(f"retention {self.name!r} does not claim to be a normaliser")

    def pull(self, update: Tensor, context: Context) -> Tensor:
        """A linear map of the update that depends on the anchor only (Lattice's projection)."""
        return update


retentions: Registry[Retention] = Registry("retention", Retention)


def decay_gate(per: Measure) -> dict[str, Gate]:
    """The gate of the recurrence, $\\log\\alpha_t$, which starts by keeping 99% a token."""
    return {"log_decay": Gate("log_sigmoid", init=0.99, per=per)}


def slice_dims(axis: Axis, dims: int) -> tuple[int, ...]:
    """The trailing dimensions over which one slice of a weight extends."""
    if axis == "all" or dims == 1:
        return tuple(range(-dims, 0))
    return (-2,) if axis == "in" else (-1,)


def check_choice(retention: Retention, field: str, *choices: str) -> None:
    """Raise ValueError unless the field is one of the choices."""
    value = getattr(retention, field)
    if value not in choices:
        raise ValueError(f"{retention.name} needs {field} to be one of {choices}, got {value!r}")


def check_per(retention: Retention) -> None:
    """Raise ValueError unless the field ``per`` says what a gate can be measured out to."""
    check_choice(retention, "per", "head", "key", "value")


def check_axis(retention: Retention) -> None:
    """Raise ValueError unless the field ``axis`` names an `Axis`."""
    check_choice(retention, "axis", "in", "out", "all")


def check_positive(retention: Retention, *fields: str) -> None:
    """Raise ValueError unless these fields are finite numbers above zero."""
    for field in fields:
        value = getattr(retention, field)
        if not 0 < value < math.inf:
            raise ValueError(f"{retention.name} needs a finite {field} > 0, got {value!r}")

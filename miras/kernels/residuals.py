"""Which biases kernels can compute, and how they are told: a key, two Triton functions, constants.

A bias of your own gets the kernels with two ``@triton.jit`` functions; see `miras.biases.AttentionalBias.triton_residual`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from miras.biases import L1, L2, AttentionalBias, Dot, Huber, HuberNorm, LogCosh, Lp, ValueShift, Yaad

T = TypeVar("T")


class Residual(NamedTuple):
    """What a kernel needs of a bias."""

    residual: Any  # @triton.jit (p, v, gate, constants) -> error
    vjp: Any  # @triton.jit (p, v, gate, d, constants) -> gradients of p, v and gate
    constants: tuple[float, ...]
    rowwise: bool  # whether a channel's error depends on the other channels


def _smooth(bias: Any) -> tuple[float, ...]:
    return (1.0, bias.nu) if bias.smooth == "gradient" else (0.0, bias.eps)


NORMS = ("l2", "rms", "max")
"""What Yaad compares with its threshold, in the order in which its Triton function numbers them."""

BUILT_IN: dict[type[AttentionalBias], tuple[str, bool, Callable[[Any], tuple[float, ...]]]] = {
    Dot: ("dot", False, lambda _: ()),
    L2: ("l2", False, lambda b: (b.curvature,)),
    L1: ("l1", False, _smooth),
    Lp: ("lp", False, lambda b: (*_smooth(b), b.p, b.eps)),
    LogCosh: ("log_cosh", False, lambda _: ()),
    Huber: ("huber", False, lambda _: ()),
    HuberNorm: ("huber_norm", True, lambda _: ()),
    Yaad: ("yaad", True, lambda b: (*_smooth(b), b.curvature, NORMS.index(b.norm))),
    ValueShift: ("value_shift", True, lambda b: (b.eps,)),
}
"""The name of the Triton function, whether it looks along a row, and the constants of a bias."""


def supported(bias: AttentionalBias, norms: bool = False) -> str | None:
    """None, or why kernels cannot compute the residual of a bias. Imports no Triton.

    Args:
        bias: the bias.
        norms: whether the kernel sees whole rows without padding, as Yaad's norms other than l2 want them.
    """
    if len(bias.gates) > 1 or any(gate.per not in ("head", "value") for gate in bias.gates.values()):
        return f"bias {bias.name!r} has more than one gate, or one that is neither per head nor per value channel"
    if bias.triton_residual is not None and stale(type(bias), "triton_residual", "residual"):
        return f"bias {bias.name!r} has a residual of its own, but inherits its triton_residual"
    if bias.triton_residual is not None:
        return None if bias.triton_vjp is not None else f"bias {bias.name!r} has a triton_residual without a triton_vjp"
    if type(bias) not in BUILT_IN:
        return f"bias {bias.name!r} has no triton_residual"
    if isinstance(bias, Yaad) and bias.norm != "l2" and not norms:
        return f"bias {bias.name!r} compares with a norm other than l2"
    return None


def stale(kind: type, kernel: str, function: str) -> bool:
    """Whether a class has overridden a function, but not what computes it in kernels."""
    written, compiled = (next(i for i, c in enumerate(kind.__mro__) if n in vars(c)) for n in (function, kernel))
    return written < compiled


AFFINE = "affine"
"""The key of any affine residual, with the slope as its gate and the offset in the place of the value."""


def key(bias: AttentionalBias) -> str:
    """A string that stands for the bias in the arguments of an operator; compilers can form it while they trace."""
    numbers = bias.triton_constants if bias.triton_residual is not None else BUILT_IN[type(bias)][2](bias)
    return " ".join([bias.triton_key, *[repr(float(number)) for number in numbers]])


def constant(key: str) -> bool:
    """Whether the error does not depend on the prediction."""
    return key == Dot.triton_key


def recall(key: str) -> Residual:
    """The Triton functions behind a key."""
    from miras.kernels._shared import biases

    if key == AFFINE:
        return Residual(biases.affine, biases.affine_vjp, (), False)
    where, *numbers = key.split(" ")
    constants = tuple(float(number) for number in numbers)
    # of a class that was defined again, as in notebooks, the last
    bias = next(kind for kind in reversed(kinds(AttentionalBias)) if kind.triton_key == where)
    if bias.triton_residual is not None:
        return Residual(bias.triton_residual, bias.triton_vjp, constants, bias.triton_rowwise)
    function, looks_along, _ = BUILT_IN[bias]
    return Residual(getattr(biases, function), getattr(biases, f"{function}_vjp"), constants, looks_along)


def kinds(base: type[T]) -> list[type[T]]:
    """All classes derived from it, in the order of their definition within each base."""
    return [kind for derived in base.__subclasses__() for kind in (derived, *kinds(derived))]


def rowwise(bias: AttentionalBias) -> bool:
    """Whether a channel's error depends on the other channels."""
    return bias.triton_rowwise if bias.triton_residual is not None else BUILT_IN[type(bias)][1]

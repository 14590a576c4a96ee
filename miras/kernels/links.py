"""Which links kernels of a matrix can form, and how they are told: a key, two Triton functions, constants.

A retention of your own gets the kernels with two ``@triton.jit`` functions; see `miras.retentions.Retention.triton_link`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from miras.kernels.residuals import kinds, stale
from miras.retentions import ElasticNet, Exponentiated, Logistic, Retention, Tanh


class Link(NamedTuple):
    """What a kernel needs of a retention with a link."""

    link: Any  # @triton.jit (a, constants) -> weights
    vjp: Any  # @triton.jit (a, d_w, constants) -> gradient of a
    constants: tuple[float, ...]
    ceiling: float | None  # where memories stop at the end of a chunk
    level: int  # see `level`; with a threshold both functions take it after a, and the second gives its gradient too

    @property
    def forward(self) -> dict[str, Any]:
        """Arguments of kernels that form weights."""
        return {"LINK": self.link, **self._both}

    @property
    def backward(self) -> dict[str, Any]:
        """Arguments of the kernel through which gradients of weights go."""
        return {"LINK_VJP": self.vjp, **self._both}

    @property
    def _both(self) -> dict[str, Any]:
        return {"LINK_CONSTANTS": self.constants, "CEILING": self.ceiling, "LEVEL": self.level}


BUILT_IN: dict[type[Retention], tuple[str, Callable[[Any], tuple[float, ...]]]] = {
    Logistic: ("logistic", lambda _: ()),
    Tanh: ("tanh", lambda _: ()),
    Exponentiated: ("exponentiated", lambda r: (r.limit,)),
    ElasticNet: ("soft_threshold", lambda r: (float(r.smooth),)),
}
"""The name of the Triton function, and the constants of a retention."""


def level(retention: Retention) -> int:
    """Whether the link has a threshold (1), and accumulators commit through it (2), as kernels number it."""
    return 1 + retention.accumulates_threshold if "threshold" in retention.gates else 0


def supported(retention: Retention) -> str | None:
    """None, or why kernels of a matrix cannot form a link. Imports no Triton."""
    own = retention.triton_link is not None
    if retention.link_is_identity:
        return f"retention {retention.name!r} has no link"
    if not own and type(retention) not in BUILT_IN:
        return f"retention {retention.name!r} has no triton_link"
    if own and stale(type(retention), "triton_link", "link"):
        return f"retention {retention.name!r} has a link of its own, but inherits its triton_link"
    if own and retention.triton_link_vjp is None:
        return f"retention {retention.name!r} has a triton_link without a triton_link_vjp"
    commits, accumulates = type(retention).commit is not Retention.commit, level(retention) == 2
    if own and ((commits and not accumulates) or retention.pulls):
        return f"retention {retention.name!r} changes accumulators at the end of a chunk, or updates"
    if own and accumulates and not commits:
        return f"retention {retention.name!r} accumulates a threshold that no commit applies"
    if own and type(retention).slope is not Retention.slope:
        return f"retention {retention.name!r} has a slope, which kernels do not take into bounds of steps"
    if own and not set(retention.gates) <= {"log_decay", "threshold"}:
        return f"retention {retention.name!r} has a gate beside decay and threshold, which links in kernels do not see"
    return None


def key(retention: Retention) -> str:
    """A string that stands for the link in the arguments of an operator; compilers can form it while they trace."""
    numbers = (
        retention.triton_constants if retention.triton_link is not None else BUILT_IN[type(retention)][1](retention)
    )
    return " ".join([retention.triton_key, str(level(retention)), *[repr(float(number)) for number in numbers]])


def recall(key: str) -> Link:
    """The Triton functions behind a key."""
    from miras.kernels._shared import links

    where, threshold, *numbers = key.split(" ")
    constants = tuple(float(number) for number in numbers)
    retention = next(kind for kind in reversed(kinds(Retention)) if kind.triton_key == where)
    if retention.triton_link is not None:
        return Link(retention.triton_link, retention.triton_link_vjp, constants, None, int(threshold))
    name, ceiling = BUILT_IN[retention][0], constants[0] if retention is Exponentiated else None
    return Link(getattr(links, name), getattr(links, f"{name}_vjp"), constants, ceiling, int(threshold))

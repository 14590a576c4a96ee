"""What a tie is, and how ties surround a memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from torch import Tensor

from miras.gates import Gate
from miras.registry import Component, Registry

State = TypeVar("State")
Parameters = Mapping[str, Tensor]


class Tokens(NamedTuple):
    """What a memory is given: ``[B, T, H, D]``, keys and values of N pairs a token ``[B, T, H, N, D]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]


@dataclass(frozen=True)
class Tie(Component):
    """Something a published layer fixes among the queries, keys, values and gates of one token.

    A memory takes them as independent; here some follow from others. A tie has no memory of its own: it sees one token at
    a time, before the memory and once more with its answer. The defaults change nothing.
    """

    gives: ClassVar[frozenset[str]] = frozenset()
    """Gates of the memory that it computes, so that nobody else has to."""
    pairs: ClassVar[int | None] = None
    """The pairs a token it takes, where it makes others of them."""

    @property
    def gates(self) -> Mapping[str, Gate]:
        """The gates it wants, in place of those it gives or in another range."""
        return {}

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        """The learned numbers it starts with, ``[H, ...]``."""
        return {}

    def width(self, d_value: int) -> int:
        """Channels of the values it hands on."""
        return d_value

    def before(self, x: Tokens, p: Parameters) -> Tokens:
        """What the memory is given."""
        return x

    def after(self, y: Tensor, x: Tokens, p: Parameters) -> Tensor:
        """The answer, from that of the memory ``[B, T, H, D_value]`` and what `before` was given."""
        return y


ties: Registry[Tie] = Registry("tie", Tie)
"""Ties by name, for the JSON of a layer."""


def projected(gates: Mapping[str, Gate], around: Sequence[Tie]) -> dict[str, Gate]:
    """The gates that have to be supplied where a memory wants these."""
    given = {name for tie in around for name in tie.gives}
    left = {name: gate for name, gate in gates.items() if name not in given}
    return left | {name: gate for tie in around for name, gate in tie.gates.items()}


def given(around: Sequence[Tie], x: Tokens, parameters: Sequence[Parameters]) -> Tokens:
    """What a memory behind these ties is given."""
    for tie, p in zip(around, parameters, strict=True):
        x = tie.before(x, p)
    return x


def through(
    around: Sequence[Tie],
    x: Tokens,
    parameters: Sequence[Parameters],
    memory: Callable[[Tokens], tuple[Tensor, State]],
) -> tuple[Tensor, State]:
    """The answer of a memory behind these ties, the first of them outermost, and its state."""
    if not around:
        return memory(x)
    outer, *inner = around
    y, state = through(inner, outer.before(x, parameters[0]), parameters[1:], memory)
    return outer.after(y, x, parameters[0]), state

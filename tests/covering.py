"""A pairwise covering array of the design space: few specs in which every two compatible choices meet.

Exhaustively there are some 14,000 combinations of components alone; faults are nearly always made by one or two.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, product
from typing import Any

from torch import nn

from miras import MirasSpec
from miras.spec import AXES


def perceptron(d_key: int, d_value: int) -> nn.Module:
    """What anyone would wrap first."""
    return nn.Sequential(nn.Linear(d_key, 2 * d_key), nn.GELU(), nn.Linear(2 * d_key, d_value))


SMALL: dict[str, dict[str, Any]] = {
    "from_module": {"factory": perceptron},
    "low_rank": {"rank": 4},
    **{name: {"expansion": 2} for name in ("mlp", "gated_mlp", "gated_residual_mlp")},
}
"""Fields that make a component small; all others stay at their defaults."""

FACTORS: dict[str, tuple[Any, ...]] = {
    **{axis: tuple(registry) for axis, registry in AXES.items()},
    "chunk_size": (1, 16, 64),
    "read": ("after", "previous", "anchor"),
}
PLAIN = {
    "architecture": "matrix",
    "bias": "l2",
    "retention": "none",
    "algorithm": "gd",
    "chunk_size": 1,
    "read": "after",
}
"""Choices that go with everything: two others exclude each other if they do so even here."""

Choice = tuple[str, Any]
CANDIDATES = 50


def make(row: dict[str, Any], **fields: Any) -> MirasSpec:
    """The spec of a row, its components as small as they go."""
    built = {axis: AXES[axis].build({"name": row[axis], **SMALL.get(row[axis], {})}) for axis in AXES}
    return MirasSpec(**(row | built | fields))


@cache
def agree(a: Choice, b: Choice) -> bool:
    """Whether two choices combine."""
    try:
        make(PLAIN | dict((a, b)))
    except ValueError:
        return False
    return True


def pairs() -> set[frozenset[Choice]]:
    """All pairs of choices that combine."""
    return {
        frozenset((a, b))
        for f, g in combinations(FACTORS, 2)
        for a, b in product(((f, x) for x in FACTORS[f]), ((g, y) for y in FACTORS[g]))
        if agree(a, b)
    }


def covered(row: dict[str, Any]) -> set[frozenset[Choice]]:
    """The pairs of a row."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


@cache
def covering() -> tuple[dict[str, Any], ...]:
    """Greedily, row by row, the best of some random rows around a pair still missing; always the same ones."""
    rng, missing, rows = random.Random(0), sorted(pairs(), key=lambda p: sorted(map(str, p))), []
    todo = set(missing)
    while todo:
        first = next(p for p in missing if p in todo)
        row = max((_grown(dict(first), todo, rng) for _ in range(CANDIDATES)), key=lambda r: len(covered(r) & todo))
        rows.append({f: row[f] for f in FACTORS})
        todo -= covered(row)
    return tuple(rows)


def _grown(row: dict[str, Any], todo: set[frozenset[Choice]], rng: random.Random) -> dict[str, Any]:
    """A partial row completed, factors in random order, each by the choice that covers most."""
    rest = [f for f in FACTORS if f not in row]
    rng.shuffle(rest)
    for f in rest:
        fitting = [(f, x) for x in FACTORS[f] if all(agree((f, x), other) for other in row.items())]
        rng.shuffle(fitting)
        best = max(fitting, key=lambda c: sum(frozenset((c, other)) in todo for other in row.items()))
        row |= dict([best])
    return row

"""Where nobody has been: the neighbours of an entry, and random points."""

from __future__ import annotations

import random as chance
from collections.abc import Iterator
from typing import Any, NamedTuple

from miras import MirasSpec
from miras.spec import AXES
from zoo._catalogue import ENTRIES

Coordinates = tuple[str, ...]
"""The names of the four components."""


class Neighbours(NamedTuple):
    """What differs from an entry on one axis.

    Attributes:
        published: names of entries, each with the axes on which it differs (none: only fields and numbers do).
        unexplored: axis and component of combinations that no entry has.
    """

    published: dict[str, tuple[str, ...]]
    unexplored: tuple[tuple[str, str], ...]


def neighbours(name: str) -> Neighbours:
    """The entries at most one axis away from this one, and the combinations around it that nobody has published.

    Example:
        >>> import zoo
        >>> zoo.neighbours("gated_deltanet").published["deltanet"]
        ('retention',)
    """
    here, taken = coordinates(ENTRIES[name].spec), published()
    near: dict[str, tuple[str, ...]] = {}
    for other, entry in ENTRIES.items():
        differ = tuple(axis for axis, a, b in zip(AXES, here, coordinates(entry.spec), strict=True) if a != b)
        if other != name and len(differ) <= 1:
            near[other] = differ
    unexplored = tuple(
        (axis, component) for axis, component, point in _around(ENTRIES[name].spec) if coordinates(point) not in taken
    )
    return Neighbours(near, unexplored)


def random(seed: int) -> MirasSpec:
    """A spec that nobody has published: four components that combine, with a bound on every step.

    Example:
        >>> import zoo
        >>> zoo.random(0) == zoo.random(0)
        True
    """
    rng, taken = chance.Random(seed), published()
    while True:
        names = {axis: rng.choice(_usable(axis)) for axis in AXES}
        if tuple(names.values()) in taken:
            continue
        try:
            return MirasSpec.make(**names, chunk_size=rng.choice((1, 4, 16, 64)))
        except ValueError:  # a refused pair: draw again
            continue


def published() -> frozenset[Coordinates]:
    """The coordinates of all entries."""
    return frozenset(coordinates(entry.spec) for entry in ENTRIES.values())


def coordinates(spec: MirasSpec) -> Coordinates:
    """The names of the four components."""
    return tuple(getattr(spec, axis).name for axis in AXES)


def _around(spec: MirasSpec) -> Iterator[tuple[str, str, MirasSpec]]:
    fields: dict[str, Any] = spec.to_dict()
    for axis in AXES:
        for component in _usable(axis):
            if component == fields[axis]["name"]:
                continue
            try:
                yield axis, component, MirasSpec.from_dict(fields | {axis: component})
            except ValueError:  # a refused pair
                continue


def _usable(axis: str) -> list[str]:
    """Components that need nothing but their name."""
    return [name for name in AXES[axis] if name != "from_module"]

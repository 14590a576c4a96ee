"""All entries by name, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from miras import MirasSpec
from miras.registry import UnknownName, hint
from zoo import delta, hebbian, others, second_order, test_time_training, titans_miras
from zoo._entry import Entry, Form

FAMILIES: dict[str, tuple[Entry, ...]] = {
    "Hebbian": hebbian.ENTRIES,
    "delta rule": delta.ENTRIES,
    "second order": second_order.ENTRIES,
    "test-time training": test_time_training.ENTRIES,
    "Titans and MIRAS": titans_miras.ENTRIES,
    "others": others.ENTRIES,
}
"""The entries, family by family."""


class _Catalogue(dict[str, Entry]):
    """Entries by name, which says what is probably meant by one that is unknown."""

    def __missing__(self, name: str) -> Entry:
        raise UnknownName(f"no memory named {name!r} in the zoo{hint(name, self)} (have: {', '.join(self)})")


ENTRIES: Mapping[str, Entry] = _Catalogue({e.name: e for family in FAMILIES.values() for e in family})
"""Every entry by its name."""


def names(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, family by family.

    Example:
        >>> import zoo
        >>> zoo.names("*delta*")
        ['deltanet', 'gated_deltanet', 'deltaproduct']
    """
    return [name for name in ENTRIES if fnmatchcase(name, pattern)]


def spec(name: str, *, form: Form = "paper", **overrides: Any) -> MirasSpec:
    """The spec of an entry.

    Args:
        name: of the entry.
        form: ``paper``, or ``recommended``: the same with the few changes that its note explains.
        overrides: fields of the spec; a mapping without a ``name`` changes fields of a component.

    Raises:
        KeyError: for an unknown name.
        ValueError: for an override that the spec does not have.

    Example:
        >>> import zoo
        >>> zoo.spec("deltanet", algorithm={"max_lr": 2.0}).algorithm
        GD(max_lr=2.0, per='head')
    """
    return ENTRIES[name].point(form, **overrides)


def load(
    name: str,
    *,
    dim: int,
    heads: int = 4,
    form: Form = "paper",
    around: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> nn.Module:
    """A layer: a `miras.Memory`, or a module that is called and stepped like one.

    Args:
        name: of the entry.
        dim: width of the inputs and outputs.
        heads: independent memories.
        form: as in `spec`.
        around: fields of `miras.Surroundings` to change.
        overrides: as in `spec`, ``chunk_size`` for example.

    Example:
        >>> import torch, zoo
        >>> layer = zoo.load("gated_deltanet", dim=32, heads=2)
        >>> y, state = layer(torch.randn(1, 10, 32))
        >>> y.shape
        torch.Size([1, 10, 32])
    """
    return ENTRIES[name].load(dim, heads, form, around, **overrides)


def cite(name: str) -> str:
    """BibTeX of an entry's paper."""
    return ENTRIES[name].bibtex

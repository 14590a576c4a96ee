"""What a component says of itself, in words and rows of a table."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin, get_type_hints

from miras.cli._formulas import readable
from miras.gates import Gate

Class = type[Any]

GATE = ("per", "at first", "range")
"""Columns of a row that `gate` makes."""
_RANGE = {"log_sigmoid": "its log, below 0", "softplus": "above 0", "identity": "any number"}


def docstring(cls: Class) -> str:
    """The docstring with readable formulas."""
    return readable(inspect.getdoc(cls) or "(no docstring)")


def summary(cls: Class) -> str:
    """Its first paragraph, which is a sentence."""
    return " ".join(docstring(cls).split("\n\n")[0].split())


def fields(cls: Class) -> list[tuple[str, str, str]]:
    """Name, default and type of everything a component is built from."""
    kinds = get_type_hints(cls)
    return [(f.name, _default(f), _kind(kinds[f.name])) for f in dataclasses.fields(cls) if f.init]


def gates(cls: Class) -> dict[str, Gate]:
    """The gates of the component with default fields."""
    declared = getattr(_instance(cls), "gates", {})
    return {} if isinstance(declared, property) else dict(declared)


def gate(gate: Gate) -> tuple[str, str, str]:
    """What a gate is measured out to, its value at initialisation, and its range."""
    return gate.per, f"{gate.init:g}", _RANGE.get(gate.squash, f"0 to {gate.scale:g}")


def claims(cls: Class, base: Class) -> list[tuple[str, str]]:
    """The truth values that classes of this base promise, as it declares them."""
    names = [name for name, kind in inspect.get_annotations(base).items() if kind == "ClassVar[bool]"]
    return [(name, {True: "yes", False: "no"}.get(getattr(_instance(cls), name), "depends")) for name in names]


def _instance(cls: Class) -> Any:
    """A component with default fields, or its class where it has fields without a default."""
    return cls if any(_default(f) == "needed" for f in dataclasses.fields(cls) if f.init) else cls()


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return "needed" if field.default_factory is MISSING else repr(field.default_factory())


def _kind(hint: Any) -> str:
    """A type as a reader would write it; choices are spelt out."""
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_kind, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)

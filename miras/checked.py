"""Errors for fields of configurations that hold something of another type, as those read from files may."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any


def switches(owner: Any) -> None:
    """That all fields of a dataclass which are declared as ``bool`` are.

    Raises:
        ValueError: naming the first that is not.
    """
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if field.type in (bool, "bool") and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be true or false, got {value!r}")


def whole(owner: Any, least: Mapping[str, int], optional: Collection[str] = ()) -> None:
    """That fields are integers, each of at least so much; some may be None.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, smallest in least.items():
        value = getattr(owner, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")

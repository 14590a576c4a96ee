"""Slots, shards and stacks of memories."""

from collections.abc import Callable

from literals._shared import Remembered

LITERALS: dict[str, Callable[..., Remembered]] = {}

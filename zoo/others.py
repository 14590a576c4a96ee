"""Slots, shards, stacks, and attention itself."""

from zoo._entry import Entry

ENTRIES: tuple[Entry, ...] = ()

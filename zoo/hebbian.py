"""Hebbian memories: they add what they see and never look at what is there."""

from zoo._entry import Entry

ENTRIES: tuple[Entry, ...] = ()

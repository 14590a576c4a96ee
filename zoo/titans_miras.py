"""Titans and the three memories of MIRAS."""

from zoo._entry import Entry

ENTRIES: tuple[Entry, ...] = ()

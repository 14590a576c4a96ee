"""Memories that solve for the past: Mesa, recursive least squares, ATLAS and its relatives."""

from zoo._entry import Entry

ENTRIES: tuple[Entry, ...] = ()

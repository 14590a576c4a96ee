"""Test-time training: TTT-Linear, TTT-MLP, LaCT."""

from zoo._entry import Entry

ENTRIES: tuple[Entry, ...] = ()

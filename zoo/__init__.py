"""Every published test-time memory as one declarative entry that provably equals its paper."""

from zoo._catalogue import ENTRIES, FAMILIES, cite, load, names, spec
from zoo._entry import Entry
from zoo._explore import neighbours, random
from zoo._table import Row, Table, table

__all__ = [
    "ENTRIES",
    "FAMILIES",
    "Entry",
    "Row",
    "Table",
    "cite",
    "load",
    "names",
    "neighbours",
    "random",
    "spec",
    "table",
]

"""The whole family as rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from miras.citations import PAPERS
from zoo._catalogue import FAMILIES
from zoo._entry import Entry


@dataclass(frozen=True)
class Row:
    """One entry: its coordinates on the four axes and where it comes from."""

    name: str
    title: str
    family: str
    architecture: str
    bias: str
    retention: str
    algorithm: str
    chunk_size: int
    recurrence: str
    year: int
    paper: str
    note: str


class Table(tuple[Row, ...]):
    """Rows; ``pandas.DataFrame(zoo.table())`` is a data frame."""

    __slots__ = ()

    def to_markdown(self, *columns: str) -> str:
        """These columns (all, if none is named) as Markdown."""
        chosen = columns or tuple(field.name for field in dataclasses.fields(Row))
        lines = [chosen, ("---",) * len(chosen), *((str(getattr(row, c)) for c in chosen) for row in self)]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def table() -> Table:
    """All entries, family by family.

    Example:
        >>> import zoo
        >>> print(zoo.table().to_markdown("name", "bias", "retention").splitlines()[0])
        | name | bias | retention |
    """
    return Table(_row(entry, family) for family, entries in FAMILIES.items() for entry in entries)


def _row(entry: Entry, family: str) -> Row:
    spec = entry.spec
    return Row(
        entry.name,
        entry.title,
        family,
        spec.architecture.name,
        spec.bias.name,
        spec.retention.name,
        spec.algorithm.name,
        spec.chunk_size,
        entry.recurrence,
        PAPERS[entry.paper].year,
        entry.paper,
        entry.note,
    )

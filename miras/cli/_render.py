"""How the command prints: nothing is cut off, and nothing on a pipe is wrapped or coloured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str = "", style: str = "") -> None:
    """Prints a text as it is; the terminal breaks its lines."""
    _console().print(text, style=style or None, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table and an empty line; on a pipe every row is one line, however long."""
    console = _console()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid)
    console.print()


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError:
        raise SystemExit("miras: the command prints with rich; pip install 'miras-memory[cli]'") from None
    return Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False, emoji=False)

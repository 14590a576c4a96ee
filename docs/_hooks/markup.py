"""Tables as HTML, which no formula can break; their cells are Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], anchor: str = "") -> str:
    """A table; with an anchor, a row is found as ``#anchor-name``, the name being its first cell."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    lines = "\n".join(_row(cells, anchor) for cells in rows)
    return f'<div class="wide" tabindex="0">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>\n'


def code(lines: Iterable[str]) -> str:
    """Names as code, one a line."""
    return "\n".join(f"`{line}`" for line in lines)


def _row(cells: Sequence[str], anchor: str) -> str:
    name = re.sub(r"\W*(\w+).*", r"\1", cells[0])
    return f"<tr{f' id={anchor}-{name}' if anchor else ''}>{''.join(f'<td>{_cell(cell)}</td>' for cell in cells)}</tr>"


SPAN = re.compile(
    r"``(?P<long>.+?)``|`(?P<code>.+?)`|\$(?P<math>.+?)\$|\[(?P<text>[^\]]+)\]\((?P<link>[^)]+)\)", re.DOTALL
)


def _cell(text: str) -> str:
    """Plain text with code, formulas and links; a line ends where a line ends."""
    out, end = "", 0
    for m in SPAN.finditer(text):
        out += html.escape(text[end : m.start()], quote=False).replace("\n", "<br>") + _span(m)
        end = m.end()
    return out + html.escape(text[end:], quote=False).replace("\n", "<br>")


def _span(m: re.Match[str]) -> str:
    if m["math"]:
        return f'<span class="arithmatex">\\({html.escape(m["math"])}\\)</span>'
    if m["link"]:
        return f'<a href="{m["link"]}">{_cell(m["text"])}</a>'
    return f"<code>{html.escape(m['long'] or m['code'])}</code>"

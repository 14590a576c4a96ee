"""What benchmarks have measured, from every file of ``benchmarks/results``: a section a file, nothing typed by hand."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _hooks import curves
from _hooks.markup import table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
Row = dict[str, Any]
"""A `benchmarks.report.Row` as a mapping."""


def measured() -> str:
    """All results, a section a file; what was promised and missed is shown as missed."""
    return "\n\n".join(section(json.loads(path.read_text()), path.stem) for path in sorted(RESULTS.glob("*.json")))


def section(result: dict[str, Any], name: str) -> str:
    """Where it was measured, how, comparisons, curves, and every number."""
    rows: list[Row] = result["rows"]
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    against = [row for row in rows if row["ratio"] is not None]
    promised = [row for row in against if row["bar"] is not None]
    parts = [
        f"## {result['title']} {{#results-{name}}}",
        f"<p>{html.escape(machine)}. {html.escape(result['note'])}</p>",
        f"```sh\n{result['command']}\n```",
        *([kept(promised), curves.ratios(promised or against), comparisons(rows, against)] if against else []),
        *(curves.lines(title, points) for title, points in series(rows).items()),
        f"<details>\n<summary>All numbers</summary>\n{everything(rows)}</details>",
    ]
    return "\n\n".join(part for part in parts if part)


def kept(promised: list[Row]) -> str:
    """How many promises hold."""
    missed = sum(row["ratio"] < row["bar"] for row in promised)
    return f"{len(promised) - missed} of {len(promised)} bars are kept, {missed} missed." if promised else ""


def comparisons(rows: list[Row], against: Iterable[Row]) -> str:
    """Ours beside what it is compared with, a line each."""
    theirs = {key(row, row["series"]): row for row in rows if row["ratio"] is None}
    lines = (
        [
            row["row"],
            f"{row['ratio']:.2f}",
            promise(row),
            number(row) if row["series"] == "ours" else f"{row['series']}: {number(row)}",
            row["peer"],
            number(theirs[key(row, row["peer"])]) if key(row, row["peer"]) in theirs else "",
            row["shape"],
        ]
        for row in against
    )
    return table(["what", "times better", "bar", "ours", "against", "theirs", "shape"], lines)


def key(row: Row, series: str) -> tuple[str, ...]:
    """What the sides of one comparison share, and whose number it is."""
    return row["benchmark"], row["row"], row["shape"], row["unit"], series


def promise(row: Row) -> str:
    """The bar, and whether the ratio passes it."""
    if row["bar"] is None:
        return "none"
    return f"{row['bar']:g}: {'kept' if row['ratio'] >= row['bar'] else 'missed'}"


def number(row: Row) -> str:
    """The median with its spread and unit."""
    spread = "" if row["spread"] is None else " [{}, {}]".format(*map(three, row["spread"]))
    return f"{three(row['value'])}{spread} {row['unit']}"


def three(value: float) -> str:
    """Three digits, or all in front of the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def series(rows: Iterable[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Curves over the number of tokens, by title and by whose they are: three lengths or more."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if length := re.match(r"(?:B\d+ )?T(\d+)(?! to)\b", row["shape"]):
            title = f"{row['row']}, {row['unit']}"
            found.setdefault(title, {}).setdefault(row["series"], {})[float(length[1])] = row["value"]
    long = {title: {s: sorted(p.items()) for s, p in of.items() if len(p) > 2} for title, of in found.items()}
    return {title: of for title, of in long.items() if of}


def everything(rows: Iterable[Row]) -> str:
    """A line for each number."""
    unique = dict.fromkeys((row["row"], row["shape"], row["series"], number(row)) for row in rows)
    return table(["what", "shape", "whose", "median [spread]"], unique)

"""Points as a CSV file, a Markdown table and a plot that can be read in print."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from titans.eval import Interval, over_seeds
from titans.experiments._cells import Point

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
"""Told apart by the colour-blind (Okabe and Ito), and in grey by their markers and dashes."""
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a panel's axes are.

    Args:
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log: which of them are logarithmic, a part of ``xy``.
        chance: where guessing would be; None for no line.
    """

    x: str
    y: str
    log: str = ""
    chance: float | None = None


Means = dict[str, dict[float | str, Interval]]
"""By series and x."""


def means(points: Iterable[Point]) -> Means:
    """The mean over seeds with Student's 95% interval; of one seed, the number with its own interval."""
    grouped: dict[str, dict[float | str, list[Point]]] = {}
    for point in points:
        grouped.setdefault(point.series, {}).setdefault(point.x, []).append(point)

    def joined(some: list[Point]) -> Interval:
        if len(some) == 1:
            return Interval(some[0].value, some[0].low, some[0].high)
        return over_seeds([p.value for p in some])

    return {series: {x: joined(some) for x, some in line.items()} for series, line in grouped.items()}


def read(path: Path) -> list[Point]:
    """The points of a ``points.csv``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ({n: float(row[n]) for n in ("value", "low", "high")} for row in rows)
    return [
        Point(panel=row["panel"], series=row["series"], x=_place(row["x"]), seed=int(row["seed"]), **found)
        for row, found in zip(rows, numbers, strict=True)
    ]


def _place(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def report(
    folder: Path, title: str, panels: Mapping[str, Axes], points: Sequence[Point], notes: Sequence[str] = ()
) -> None:
    """Writes ``points.csv``, ``table.md``, ``plot.svg`` and ``plot.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(p) for p in points)
    by_panel = {name: means(p for p in points if p.panel == name) for name in panels}
    tables = [table(name, axes, by_panel[name]) for name, axes in panels.items() if by_panel[name]]
    (folder / "table.md").write_text("\n".join([f"# {title}", "", *tables, *(f"* {note}" for note in notes)]) + "\n")
    plot(folder, title, {n: a for n, a in panels.items() if by_panel[n]}, by_panel)


def table(name: str, axes: Axes, found: Means) -> str:
    """Series down and x across; names, which are longer than numbers, down and series across."""
    places = list(dict.fromkeys(x for line in found.values() for x in line))
    if any(isinstance(x, str) for x in places):
        head = [axes.x, *(series or axes.y for series in found)]
        rows = [[str(x), *(cell(line.get(x)) for line in found.values())] for x in places]
    else:
        head = [f"{axes.y} by {axes.x}", *(f"{x:g}" for x in places)]
        rows = [[series, *(cell(line.get(x)) for x in places)] for series, line in found.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([f"## {name}", "", *("| " + " | ".join(row) + " |" for row in lines), ""])


def cell(found: Interval | None) -> str:
    """A number and its interval."""
    if found is None:
        return ""
    if math.isnan(found.low):
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def plot(folder: Path, title: str, panels: Mapping[str, Axes], by_panel: Mapping[str, Means]) -> None:
    """Lines where x is a number, rows of dots where it is a name."""
    if not panels:
        return
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    named = [_names(by_panel[name]) for name in panels]
    tall = max(3.0, 0.24 * max(map(len, named)))
    with plt.rc_context(
        {
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "miras",
            "svg.fonttype": "none",
        }
    ):
        series = list(dict.fromkeys(s for name in panels for s in by_panel[name]))
        size = 3.4 * columns + 1.2, tall * rows + (0.15 * -(-len(series) // 4) if len(series) > 1 else 0)
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis, (name, axes) in zip(grid.flat, panels.items(), strict=False):
            _draw(axis, name, axes, by_panel[name], series)
        for axis in grid.flat[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(title, fontsize=9)
        if len(series) > 1:
            drawn = {s: h for a in grid.flat for h, s in zip(*a.get_legend_handles_labels(), strict=True)}
            figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4, fontsize=6, frameon=False)
        for suffix in ("svg", "png"):
            figure.savefig(folder / f"plot.{suffix}", dpi=200, metadata={"Date": None} if suffix == "svg" else None)
        plt.close(figure)


def _draw(axis: Any, name: str, axes: Axes, found: Means, every: Sequence[str]) -> None:
    """One panel; a series looks the same in all of them."""
    names = _names(found)
    for number, (series, line) in enumerate(found.items()):
        i = every.index(series)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        value = [v.value for v in line.values()]
        bars = [[_half(v.value - v.low) for v in line.values()], [_half(v.high - v.value) for v in line.values()]]
        style = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2, "linewidth": 1, "label": series}
        if names:
            shift = 0.6 * ((number + 0.5) / len(found) - 0.5)
            axis.errorbar(value, [names.index(str(x)) + shift for x in line], xerr=bars, linestyle="none", **style)
        else:
            axis.errorbar(list(line), value, yerr=bars, linestyle=DASHES[i % len(DASHES)], **style)
    if names:
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
    axis.set(title=name, xlabel=axes.y if names else axes.x, ylabel="" if names else axes.y)
    if axes.chance is not None:
        (axis.axvline if names else axis.axhline)(axes.chance, color="#999999", linewidth=0.8, linestyle=":")
    if "x" in axes.log and not names:
        axis.set_xscale("log", base=2)
    if "y" in axes.log:
        (axis.set_xscale if names else axis.set_yscale)("log")


def _names(found: Means) -> list[str]:
    """Places that are names, for which a panel has rows."""
    return [x for x in dict.fromkeys(x for line in found.values() for x in line) if isinstance(x, str)]


def _half(x: float) -> float:
    """A length of an error bar."""
    return 0.0 if math.isnan(x) else max(0.0, x)

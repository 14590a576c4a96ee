"""``miras plot``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from titans.cli._flags import check_folder, parse
from titans.train import records


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draws the curves of runs.

    Args:
        runs: their folders.
        metric: what to draw, one of the names in ``metrics.jsonl``; None for bits per byte, or the loss of what is no text.
        out: the picture, whose suffix says in which format.
        smooth: lines of ``metrics.jsonl`` over which training curves are averaged.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    metric: str | None = None
    out: Path = Path("runs.png")
    smooth: int = 1


def main(arguments: Sequence[str]) -> int:
    """Draws one line a run; dots are evaluations on held-out data."""
    options = parse(Plot, arguments, "plot")
    try:
        _check(options)
        curves = {run: records.read(run) for run in options.runs}
        metric = options.metric or _usual(curves)
        drawn = draw(curves, metric, options.smooth)
    except ValueError as error:
        print(f"miras plot: {error}", file=sys.stderr)
        return 2
    drawn.savefig(options.out)
    print(f"{metric} of {len(curves)} runs in {options.out}")
    return 0


def _check(options: Plot) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    if not options.runs:
        raise ValueError("name at least one run: miras plot FOLDER")
    if options.smooth < 1:
        raise ValueError(f"--smooth must be at least 1, got {options.smooth}")
    known = sorted(FigureCanvasBase.filetypes)
    if options.out.suffix.lower()[1:] not in known:
        raise ValueError(f"--out: no picture has the suffix {options.out.suffix!r} (have: {', '.join(known)})")
    check_folder(options.out)


def draw(curves: dict[Path, list[dict[str, Any]]], metric: str, smooth: int = 1) -> Any:
    """A matplotlib figure of a metric over steps, readable in print: one line style and shade a run."""
    from matplotlib.figure import Figure

    if not any(metric in row for rows in curves.values() for row in rows):
        known = sorted({name for rows in curves.values() for row in rows for name in row} - {"step"})
        raise ValueError(f"no run has the metric {metric!r} (have: {', '.join(known)})")
    figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (run, rows), style in zip(curves.items(), _styles(len(curves)), strict=True):
        x, y = _points(rows, metric)
        axes.plot(x, _averaged(y, smooth), label=str(run), **style)
        x, y = _points(rows, f"valid_{metric}")
        axes.plot(x, y, linestyle="none", marker="o", markersize=3, color=style["color"])
    axes.set_xlabel("step")
    axes.set_ylabel(metric.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _usual(curves: dict[Path, list[dict[str, Any]]]) -> str:
    rows = [row for rows in curves.values() for row in rows]
    return "bits_per_byte" if any("bits_per_byte" in row for row in rows) else "loss"


def _styles(count: int) -> list[dict[str, Any]]:
    lines = ("-", "--", "-.", ":")
    return [{"color": f"C{n % 10}", "linestyle": lines[n % 4], "linewidth": 1.2} for n in range(count)]


def _points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [row for row in rows if name in row]
    return [row["step"] for row in found], [row[name] for row in found]


def _averaged(y: list[float], over: int) -> list[float]:
    return [sum(y[max(0, n - over + 1) : n + 1]) / min(over, n + 1) for n in range(len(y))]

"""From the name of an experiment to its table and plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from miras.registry import hint
from titans.experiments._panels import Options
from titans.experiments._report import report
from titans.experiments._runner import Outcome, Say, run
from titans.experiments._scales import SCALES
from titans.experiments._tables import EXPERIMENTS


def sweep(
    name: str,
    out: str | Path,
    *,
    scale: str = "tiny",
    devices: Sequence[str] = ("cpu",),
    options: Options | None = None,
    say: Say = print,
) -> Outcome:
    """Runs what is missing of an experiment and writes ``points.csv``, ``table.md``, ``plot.svg`` and ``plot.png``.

    Args:
        name: of `EXPERIMENTS`.
        out: a folder; what it holds already is not run again.
        scale: of `SCALES`.
        devices: such as ``("cuda:0", "cuda:1")``, one process each.
        options: text, seeds and the like.
        say: told about every cell.

    Raises:
        ValueError: for a name that does not exist, or data an experiment cannot do without.
    """
    for what, given, known in (("experiment", name, EXPERIMENTS), ("scale", scale, SCALES)):
        if given not in known:
            raise ValueError(f"no {what} named {given!r}{hint(given, known)} (have: {', '.join(known)})")
    options, folder = options or Options(), Path(out)
    if name == "enwik8" and not options.text.startswith("enwik8:"):
        raise ValueError("enwik8 needs its file: pass text='enwik8:FILE' (plain or .zip)")
    if name == "needles" and options.haystack is None:
        raise ValueError("needles are hidden in real text: pass text='FILE' (plain or .xz)")
    if name == "forecast" and options.haystack is None:
        raise ValueError("forecast needs a table: pass text='ETTh1.csv'")
    experiment, size = EXPERIMENTS[name], SCALES[scale]
    cells = experiment.cells(size, options)
    every = experiment.cells(size, replace(options, models=()))
    have = sorted({str(cell.series or cell.x) for cell in every})
    if absent := set(options.models) - set(have):
        raise ValueError(
            f"experiment {name!r} has no model {min(absent)!r}{hint(min(absent), have)} (have: {', '.join(have)})"
        )
    outcome = run(cells, folder / "cells", devices, say)
    notes = [f"scale {scale}: {size}", f"{options}", *experiment.notes(size, options)]
    notes += [f"failed: {c.panel}, {c.series}, {c.x}, seed {c.seed}: {error}" for c, error in outcome.failed]
    report(folder, experiment.title, experiment.axes(), outcome.points, notes)
    return outcome

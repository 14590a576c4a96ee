"""Tables of experiments, from the points that ``benchmarks/results/experiments`` holds."""

from __future__ import annotations

from pathlib import Path

from mkdocs.exceptions import PluginError

from _hooks.markup import table
from titans.experiments import means, read
from titans.experiments._report import cell

POINTS = Path(__file__).parents[2] / "benchmarks" / "results" / "experiments"


def experiment(name: str, *panel: str) -> str:
    """One panel of an experiment: means with their intervals."""
    wanted = " ".join(panel)
    found = means(p for p in read(POINTS / f"{name}.csv") if p.panel == wanted)
    if not found:
        raise PluginError(f"{name}.csv has no panel {wanted!r}")
    places = list(dict.fromkeys(x for line in found.values() for x in line))
    if isinstance(places[0], str):
        return table(["model", wanted], [[str(x), *(cell(line.get(x)) for line in found.values())] for x in places])
    head = ["", *(f"{x:g}" for x in places)]
    return table(head, [[series, *(cell(line.get(x)) for x in places)] for series, line in found.items()])

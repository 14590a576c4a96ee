"""Plots of the documentation from the points of its experiments: `python -m benchmarks.redraw`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from titans.experiments import Axes, read, report

ROOT = Path(__file__).parents[1]
BITS = "bits per byte"
PLOTS: dict[str, dict[str, Axes]] = {
    "books": {
        "while training": Axes(x="bytes read", y=BITS, log="x"),
        "by position": Axes(x="position in the text", y=BITS, log="x"),
    },
    "chunk": {
        "trained at this size": Axes(x="tokens of a chunk", y=BITS, log="x"),
        "trained at 64, read at this size": Axes(x="tokens of a chunk", y=BITS, log="x"),
    },
    "depth": {"text": Axes(x="matrices of the memory", y=BITS)},
    "tasks": {
        "s_niah_1": Axes(x="bytes", y="share of passkeys", log="x"),
        "babilong qa1": Axes(x="bytes", y="share of facts", log="x", chance=1 / 8),
    },
}
"""Panels of every file in ``benchmarks/results/experiments`` that are drawn."""
TITLES = {"books": "Books", "chunk": "Chunk sizes", "depth": "Depth of the memory", "tasks": "Needles and facts"}


def main() -> None:
    """Writes ``docs/NAME.svg`` for every name."""
    for name, panels in PLOTS.items():
        points = read(ROOT / "benchmarks" / "results" / "experiments" / f"{name}.csv")
        with tempfile.TemporaryDirectory() as folder:
            report(Path(folder), TITLES[name], panels, points)
            shutil.copy(Path(folder) / "plot.svg", ROOT / "docs" / f"{name}.svg")


if __name__ == "__main__":
    main()

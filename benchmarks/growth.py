"""Row 3: time and memory of training as the sequence grows from one to 64 thousand tokens."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import layer, meter, process, report
from miras import Memory

LENGTHS = tuple(2**n for n in range(10, 17))
SPECS: dict[str, dict[str, Any]] = {
    "factored: mlp, l2, momentum, chunk 64": {
        "architecture": "mlp",
        "algorithm": "momentum",
        "chunk_size": 64,
    },
    "exact: matrix, l2, momentum, chunk 1": {
        "architecture": "matrix",
        "algorithm": "momentum",
        "chunk_size": 1,
    },
    "materialised: matrix, huber, kl, chunk 16": {
        "architecture": "matrix",
        "bias": "huber",
        "retention": "kl",
        "algorithm": "gd",
        "chunk_size": 16,
    },
}


def measure(name: str, length: int, seconds: float) -> dict[str, Any]:
    def build(shape: layer.Shape) -> Memory:
        return Memory(shape.dim, heads=shape.heads, head_dim=shape.head_dim, **SPECS[name])

    return layer.measure(build, layer.Shape(length=length, dim=64, heads=2, head_dim=32), "train", seconds)


def row(threads: int, seconds: float, folder: Path, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """Measure, print, plot, and return everything measured."""
    curves: dict[str, dict[str, list[float]]] = {}
    for name in SPECS:
        answers = [
            process.run("growth", threads=threads, name=name, length=length, seconds=seconds) for length in lengths
        ]
        curves[name] = {
            "milliseconds": [meter.spread(a["samples"])["min"] for a in answers],
            "mebibytes": [a["peak"] - a["baseline"] for a in answers],
        }
    rows = [
        [
            name,
            *(report.bar(slope(lengths, curve[key]), 1.1, at_most=True) for key in curve),
            f"{1e3 * curve['milliseconds'][-1] / lengths[-1]:.1f}",
            f"{1024 * curve['mebibytes'][-1] / lengths[-1]:.1f}",
        ]
        for name, curve in curves.items()
    ]
    title = f"Growth of training from {lengths[0]} to {lengths[-1]} tokens, {threads} thread(s)"
    header = ["memory", "slope of time", "slope of MiB", "µs per token", "KiB per token"]
    report.table(f"{title} (log-log; 1 is linear)", header, rows)
    plot(lengths, curves, folder / f"growth-{threads}.png")
    return {"lengths": lengths, "curves": curves}


def slope(lengths: tuple[int, ...], values: list[float]) -> float:
    """The steepest log-log slope over two octaves, wherever it is."""
    points = list(zip(np.log(lengths), np.log(values), strict=True))[::2]
    return float(max((v - u) / (t - s) for (s, u), (t, v) in pairwise(points)))


def plot(lengths: tuple[int, ...], curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Both quantities against length in log-log axes, with the line of linear growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key in zip(panels, ("milliseconds", "mebibytes"), strict=True):
        for name, curve in curves.items():
            panel.loglog(lengths, curve[key], "o-", base=2, label=name)
        start = min(curve[key][0] for curve in curves.values())
        linear = [start * length / lengths[0] for length in lengths]
        panel.loglog(lengths, linear, "k:", base=2, label="linear")
        panel.set(xlabel="tokens", ylabel=f"{key}, forward and backward")
    panels[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    process.answer(measure)

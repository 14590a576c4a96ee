"""What each benchmark measures as rows of one form (`report.Row`), which the page on speed shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from benchmarks import compare
from benchmarks.growth import slope
from benchmarks.report import Row

Spread = tuple[float, tuple[float, float] | None]
"""A median and where it came from."""
MODES = {"forward": "forward", "train": "forward and backward", "both": "forward and backward"}


def comparison(
    benchmark: str, row: str, shape: str, unit: str, sides: Mapping[str, Spread], bars: Mapping[str, float | None]
) -> list[Row]:
    """All sides of a comparison, ``ours`` once for every peer with a bar (None: compared, nothing promised)."""
    rows = [Row(benchmark, row, side, shape, *number, unit) for side, number in sides.items() if side != "ours"]
    if "ours" not in sides:
        return rows
    (value, spread), peers = sides["ours"], [peer for peer in bars if peer in sides and peer != "ours"]
    mine = Row(benchmark, row, "ours", shape, value, spread, unit)
    against = [
        Row(benchmark, row, "ours", shape, value, spread, unit, peer, sides[peer][0] / value, bars[peer])
        for peer in peers
    ]
    return [*(against or [mine]), *rows]


def limit(benchmark: str, row: str, series: str, shape: str, value: float, unit: str, at_most: float) -> Row:
    """A number that must stay below a limit."""
    return Row(benchmark, row, series, shape, value, None, unit, f"at most {at_most:g}", at_most / value, 1.0)


def _alternated(
    benchmark: str,
    name: str,
    shape: str,
    runs: compare.Runs,
    bars: Mapping[str, float],
    sizes: float | None = None,
    promised: Sequence[str] = ("train",),
) -> list[Row]:
    """Times and memory of candidates, with bars in the modes in which they are promised."""
    rows: list[Row] = []
    for mode in compare.MODES:
        row = f"{name}, {MODES[mode]}"
        times = {side: compare.times(modes[mode]) for side, modes in runs.items()}
        faster = {peer: bar if mode in promised else None for peer, bar in bars.items()}
        of_times: dict[str, Spread] = {side: (t["median"], (t["low"], t["high"])) for side, t in times.items()}
        rows += comparison(benchmark, row, shape, "ms", of_times, faster)
        memory: dict[str, Spread] = {side: (compare.working_set(modes[mode]), None) for side, modes in runs.items()}
        smaller = {peer: sizes if mode in promised else None for peer in bars}
        rows += comparison(benchmark, row, shape, "MiB above imports", memory, smaller)
    return rows


def titans(measured: dict[str, Any], threads: int) -> list[Row]:
    """The Titans layer against titans-pytorch, and its products against one large product."""
    s = measured["shape"]
    shape = f"B{s['batch']} T{s['length']} H{s['heads']} D{s['head_dim']}, {threads} thread(s)"
    bars = {"titans-pytorch batch_size=64": 3.0, "titans-pytorch default": 1.0}
    rows = _alternated("titans", "Titans memory, chunk 64", shape, measured["runs"], bars, 4.0)
    for mode in compare.MODES:
        row, answers = f"products a second, {MODES[mode]}", measured["runs"]["ours"][mode]
        rate = answers[0]["counted"] / 1e6 / compare.times(answers)["min"]
        share, bar = rate / measured["rate"]["sgemm"], 0.5 if mode == "train" else None
        rows.append(Row("titans", row, "ours", shape, rate, None, "GFLOP/s", "sgemm", share, bar))
        rows.append(Row("titans", row, "sgemm", shape, measured["rate"]["sgemm"], None, "GFLOP/s"))
    return rows


def exact(measured: dict[str, Any], threads: int) -> list[Row]:
    """The exact path against a loop over tokens."""
    runs = {"ours" if side == "exact path" else side: modes for side, modes in measured["runs"].items()}
    shape = f"B1 T{measured['length']} H4 D64, {threads} thread(s)"
    return _alternated("exact", "chunk size 1", shape, runs, {"token loop": 20.0}, promised=compare.MODES)


def growth(measured: dict[str, Any], threads: int) -> list[Row]:
    """Training as the sequence grows, one curve a path, which must not rise faster than the sequence."""
    units = {"milliseconds": ("training time at best", "ms"), "mebibytes": ("memory of training", "MiB")}
    lengths, curves = measured["lengths"], measured["curves"]
    points = [
        Row("growth", row, name.partition(":")[0], f"T{length}, {threads} thread(s)", value, None, unit)
        for key, (row, unit) in units.items()
        for name, curve in curves.items()
        for length, value in zip(lengths, curve[key], strict=True)
    ]
    shape = f"T{lengths[0]} to T{lengths[-1]}, {threads} thread(s)"
    slopes = [
        limit(
            "growth",
            f"growth of {row}",
            name.partition(":")[0],
            shape,
            slope(lengths, curve[key]),
            "slope",
            1.1,
        )
        for key, (row, _) in units.items()
        for name, curve in curves.items()
    ]
    return points + slopes


def stream(measured: dict[str, Any], threads: int) -> list[Row]:
    """What a long stream adds to memory."""
    return [
        limit("stream", "growth of a stream's memory", name, f"{threads} thread(s)", _grown(answer), "MiB", 8.0)
        for name, answer in measured.items()
    ]


def _grown(answer: dict[str, Any]) -> float:
    """At least a page, so that it can divide."""
    return max(max(answer["curve"]) - answer["curve"][0], 4 / 1024)


CPU = {"titans": titans, "exact": exact, "growth": growth, "stream": stream}
"""By the names of `benchmarks.cpu`."""


def gpu(results: Sequence[Mapping[str, Any]], bars: Mapping[str, tuple[float, float] | None]) -> list[Row]:
    """Kernels beside those of other packages: called from Python, and replayed from a graph.

    Args:
        results: `benchmarks.gpu.Result` as mappings.
        bars: what is promised of a row, forward, and forward and backward; 0 for nothing.
    """
    rows: list[Row] = []
    for name in dict.fromkeys(r["row"] for r in results):
        sides = {r["side"]: r for r in results if r["row"] == name}
        shape = next(iter(sides.values()))["shape"]
        forward, both = bars.get(name) or (0, 0)
        promised = {"forward": forward, "both": both}
        for key in ("forward", "both", "forward graph", "both graph"):
            mode, _, graph = key.partition(" ")
            row = f"{name}, {MODES[mode]}" + (", replayed from a graph" if graph else "")
            times = {s: _spread(r["times"][key]) for s, r in sides.items() if key in r["times"]}
            rows += comparison("gpu", row, shape, "ms", times, dict.fromkeys(times, promised[mode] or None))
        memory: dict[str, Spread] = {s: (r["peak_mib"], None) for s, r in sides.items() if "both" in r["times"]}
        rows += comparison("gpu", f"{name}, memory of training", shape, "MiB", memory, dict.fromkeys(memory))
    return rows


def gpu_mlp(results: Sequence[Mapping[str, Any]], shape: str) -> list[Row]:
    """The perceptron memory: the layer of that shape beside a peer's, presets, and the memory beside attention as T grows."""
    rows: list[Row] = []
    layers = {r["row"].removeprefix("layer "): r for r in results if r["row"].startswith("layer ")}
    layers = {"ours" if name.startswith("ours") else name: r for name, r in layers.items()}
    for mode, graph in product(("forward", "both"), (False, True)):
        key, how = (f"{mode} graph", ", replayed from a graph") if graph else (mode, "")
        row = f"perceptron layer, {MODES[mode]}"
        times = {s: _spread(r[key]) for s, r in layers.items() if key in r}
        rows += comparison("gpu_mlp", row + how, shape, "ms", times, dict.fromkeys(times))
        if not graph:
            memory: dict[str, Spread] = {s: (r[f"{mode} GiB"], None) for s, r in layers.items() if mode in r}
            rows += comparison("gpu_mlp", row, shape, "GiB", memory, dict.fromkeys(memory))
        for r in (r for r in results if r["row"].startswith("preset ") and key in r):
            row = f"{r['row'].removeprefix('preset ')}, perceptron memory, {MODES[mode]}{how}"
            rows += comparison("gpu_mlp", row, shape, "ms", {"ours": _spread(r[key])}, {"ours": None})
        for length in dict.fromkeys(r["row"].partition("T=")[2] for r in results if "T=" in r["row"]):
            found = {r["row"].partition(" T=")[0]: r for r in results if r["row"].endswith(f" T={length}")}
            times = {"ours" if s == "memory" else s: _spread(r[key]) for s, r in found.items() if key in r}
            at = f"T{length}, 16384 tokens or more"
            row = f"perceptron memory and attention, {MODES[mode]}{how}"
            rows += comparison("gpu_mlp", row, at, "ms", times, dict.fromkeys(times))
    return rows


def models(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Training of whole models beside that of a transformer: `benchmarks.models.Speed` as mappings."""
    rows: list[Row] = []
    good = [r for r in results if not r["error"]]
    usual = {(r["size"], r["length"]): r["tokens_per_second"] for r in good if r["model"] == "transformer"}
    for r in good:
        shape, rate = f"B{r['batch']} T{r['length']}", r["tokens_per_second"]
        head = ("models", f"training, {r['size']}", r["model"], shape)
        line = Row(*head, rate, (r["slowest"], r["fastest"]), "tokens/s")
        other = usual.get((r["size"], r["length"]))
        if r["model"] != "transformer" and other:
            line = replace(line, peer="transformer", ratio=rate / other)
        rows += [line, Row(*head, 100 * r["mfu"], None, "% of the card's rate")]
    return rows


def cold(results: Mapping[str, Mapping[str, float]], most: float) -> list[Row]:
    """The first pass of a shape with nothing compiled, in seconds."""
    shape = "B2 T1024 H16 D64"
    return [
        limit("cold", "first pass, nothing compiled", name, shape, t["first"], "s", most) for name, t in results.items()
    ]


def _spread(quantiles: Sequence[float]) -> Spread:
    """Median, 20% and 80%."""
    return quantiles[0], (quantiles[1], quantiles[2])

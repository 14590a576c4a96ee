"""What a run shows: the specs, a table of results with their spread, and a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch
from _train import Result
from rich.table import Table

from miras import MirasSpec

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def difference(result: Result, baseline: Result) -> tuple[float, float]:
    """Mean and standard error of what a model saves on the same segments; pairing removes what is hard for both."""
    return mean_and_error(torch.tensor(result.held_out) - torch.tensor(baseline.held_out))


def results_table(results: Mapping[str, Result], baseline: Result) -> Table:
    """One row a model, the best first."""
    seen = len(baseline.held_out)
    table = Table(
        title="Bits per byte of held-out text (less is better)",
        caption=f"± is one standard error over {seen} held-out segments, of the difference segment by segment. "
        "* marks |difference| > 2 standard errors. All this is one seed: it does not say how seeds differ.",
    )
    table.add_column("model")
    for name in ("parameters", "bits per byte", "against baseline", "", "state bytes", "path", "bytes/s"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for result in sorted(results.values(), key=lambda r: sum(r.held_out)):
        mean, error = mean_and_error(torch.tensor(result.held_out))
        change, spread = difference(result, baseline)
        is_baseline = result is baseline
        table.add_row(
            result.name,
            f"{result.parameters:,}",
            f"{mean:.3f} ± {error:.3f}",
            "—" if is_baseline else f"{change:+.3f} ± {spread:.3f}",
            "*" if not is_baseline and abs(change) > 2 * spread else "",
            f"{result.state_bytes:,}",
            result.path,
            f"{result.bytes_per_second:,.0f}",
        )
    return table


def specs_table(specs: Mapping[str, MirasSpec | None]) -> Table:
    """The four choices and the numbers of every memory; what is not said is the default."""
    table = Table(title="What is compared", show_lines=True)
    for name in ("model", "architecture", "bias", "retention", "algorithm", "and"):
        table.add_column(name)
    for name, spec in specs.items():
        if spec is None:
            table.add_row(name, "no memory: its parameters are in the MLP")
            continue
        axes = [_brief(getattr(spec, axis)) for axis in ("architecture", "bias", "retention", "algorithm")]
        numbers = (f"{n}={getattr(spec, n)}" for n in ("chunk_size", "anchor_lag", "read", "step_bound"))
        table.add_row(name, *axes, " ".join(numbers))
    return table


def _brief(component: Any) -> str:
    values = {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}
    changed = (f.name for f in dataclasses.fields(component) if values[f.name] != f.default)
    return " ".join([component.name, *(f"{name}={values[name]}" for name in changed)])


def plot(results: Mapping[str, Result], baseline: Result, file: Path) -> None:
    """Training curves, and the differences to the baseline on held-out text with two standard errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for result in results.values():
        curve = torch.tensor(result.curve)
        window = max(1, len(curve) // 20)
        smooth = curve.unfold(0, window, 1).mean(1)
        style: dict[str, Any] = {"color": "black", "linestyle": "--"} if result is baseline else {}
        left.plot(range(window, len(curve) + 1), smooth, label=result.name, **style)
    left.set(xlabel="step", ylabel="bits per byte", title="training, moving average")
    left.legend(frameon=False)
    others = sorted((r for r in results.values() if r is not baseline), key=lambda r: sum(r.held_out))
    changes, errors = zip(*(difference(r, baseline) for r in others), strict=True)
    right.bar([r.name for r in others], changes, yerr=[2 * e for e in errors], capsize=4, color="tab:blue", alpha=0.7)
    right.axhline(0, color="black", linestyle="--")
    right.set(ylabel="bits per byte against the baseline", title="held-out text, ± 2 standard errors")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def write_json(results: Mapping[str, Result], about: Mapping[str, Any], file: Path) -> None:
    """Every number behind the table and the plot."""
    numbers = {name: dataclasses.asdict(result) for name, result in results.items()}
    file.write_text(json.dumps({**about, "results": numbers}, indent=1, default=str) + "\n")

"""Markdown tables, bars, the file that a page of the documentation is made of, and what is needed to read a number later:
versions, threads, machine."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """The processor, its cores, and the versions of everything timed."""
    model = platform.processor() or platform.machine()
    if CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "miras-memory": _installed(),
    }


def card() -> dict[str, Any]:
    """The device, what compiles for it, and the release of CUDA whose assembler that uses."""
    import torch

    from miras.kernels import assembler

    release = assembler.release(os.environ.get("TRITON_PTXAS_PATH") or None)
    return {
        "device": torch.cuda.get_device_name(),
        "triton": version("triton"),
        "assembler": f"CUDA {'.'.join(map(str, release))}",
    }


def _installed() -> str:
    """The version of this library, which need not be installed where it is measured."""
    try:
        return version("miras-memory")
    except PackageNotFoundError:
        return "a checkout"


@dataclass(frozen=True)
class Row:
    """One number.

    Args:
        benchmark: the module that measured it.
        row: what is compared; all sides of a comparison share it.
        series: whose number it is: ``ours``, the name of a peer, or that of a curve.
        shape: of the operands; its ``T`` is where a curve has its point.
        value: median.
        spread: from, to; None if it was measured once.
        unit: of value and spread.
        peer: the series, or the limit, that ``ratio`` compares with.
        ratio: how many times better than the peer: faster, smaller, below the limit.
        bar: what the ratio was promised to be at least.
    """

    benchmark: str
    row: str
    series: str
    shape: str
    value: float
    spread: tuple[float, float] | None
    unit: str
    peer: str | None = None
    ratio: float | None = None
    bar: float | None = None


def write(
    path: Path, title: str, command: str, machine: Mapping[str, Any], rows: Iterable[Row], note: str = ""
) -> None:
    """Write rows as JSON: what `benchmarks/results` holds and the page on speed shows.

    Args:
        path: the file.
        title: a heading.
        command: what measured them.
        machine: device and versions.
        rows: the numbers.
        note: what a reader has to know: load, what was left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"title": title, "command": command, "machine": dict(machine), "note": note}
    path.write_text(json.dumps(head | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    print(f"\n{title}\n")
    for row in (header, rule, *rows):
        print("| " + " | ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def bar(value: float, bound: float, *, at_most: bool = False) -> str:
    """A value beside the bar it must pass."""
    sign, passed = ("≤", value <= bound) if at_most else ("≥", value >= bound)
    return f"{value:.2f} ({sign} {bound:g}: {'pass' if passed else 'FAIL'})"


def save(folder: Path, name: str, data: Mapping[str, Any]) -> Path:
    """Write `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path

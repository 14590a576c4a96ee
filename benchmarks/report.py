"""Markdown tables, bars, and what is needed to read a number later: versions, threads, machine."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
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
        "miras-memory": version("miras-memory"),
    }


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

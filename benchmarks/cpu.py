"""Every CPU claim of this project, measured here and now, each beside the bar it must pass.

python -m benchmarks.cpu                              # all rows, about ten minutes
python -m benchmarks.cpu --rows titans --threads 1 2  # one row
python -m benchmarks.cpu --json benchmarks/results/cpu.json  # and for the page on speed
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import against_titans, exact, growth, layer, process, report, rows, stream

ROWS = ("titans", "exact", "growth", "stream")


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    gate = process.run("correct", threads=1)
    if not gate["green"]:
        sys.exit(f"nothing is measured: the layer differs from its reference: {gate['errors']}")
    report.table("Machine", *_columns(report.machine()))
    report.table("Relative errors", *_columns({k: f"{e:.0e}" for k, e in gate["errors"].items()}))
    found: list[report.Row] = []
    for threads in options.threads:
        for name in options.rows:
            measured = _row(name, threads, options)
            everything = {"machine": report.machine(), "threads": threads, "errors": gate["errors"]}
            path = report.save(options.out, f"{name}-{threads}", everything | {"measured": measured})
            print(f"\nsaved {path}")
            found += rows.CPU[name](measured, threads)
            if options.json:
                report.write(options.json, "On a CPU", _command(options), report.machine(), found, options.note)


def _row(name: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    match name:
        case "titans":
            return against_titans.row(threads, options.rounds, options.seconds, layer.Shape())
        case "exact":
            return exact.row(threads, options.rounds, options.seconds)
        case "growth":
            return growth.row(threads, options.seconds, options.out, tuple(options.lengths))
        case _:
            return stream.row(threads)


def _command(options: argparse.Namespace) -> str:
    """What measures the same again."""
    given = [("rows", options.rows), ("threads", options.threads), ("rounds", [options.rounds])]
    given += [("seconds", [options.seconds]), *([("lengths", options.lengths)] if "growth" in options.rows else [])]
    return "python -m benchmarks.cpu " + " ".join(f"--{name} {' '.join(map(str, x))}" for name, x in given)


def _columns(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    return list(data), [[str(value) for value in data.values()]]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of every layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="time given to one measurement")
    parser.add_argument("--lengths", type=int, nargs="+", default=growth.LENGTHS, help="of the row growth")
    parser.add_argument("--json", type=Path, help="rows of all benchmarks in one file (see `report.write`)")
    parser.add_argument("--note", default="", help="what a reader of that file has to know")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

"""``miras sweep``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from titans.cli._flags import parse
from titans.experiments import Options, sweep
from titans.train.parallel import check_device


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs what is missing of a declared experiment and writes points.csv, table.md, plot.svg and plot.png.

    Args:
        name: variants, depth, chunk, retention, bias, enwik8, babilong, needles, recall, mad, length, forecast or outliers.
        scale: tiny (a CPU, minutes), small (a GPU, an hour) or h100.
        out: folder of the results; None for sweeps/NAME-SCALE.
        text: stdlib, files, or any other source that `miras train --data` takes; a file also hides the facts of
            babilong, needles and passkey, or is the table of forecast.
        valid: another text to measure on.
        seeds: runs of every cell; None for the scale's.
        steps: of every training; None for the scale's.
        models: only these.
        devices: one process each, such as cuda:0 cuda:1, or cpu cpu; none for what is there.
    """

    name: Annotated[str, tyro.conf.Positional]
    scale: str = "tiny"
    out: Path | None = None
    text: str = "stdlib"
    valid: str | None = None
    seeds: int | None = None
    steps: int | None = None
    models: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> int:
    """Runs it; cells that fail are reported and make the exit code 1."""
    args = parse(Sweep, arguments, "sweep")
    out = args.out or Path("sweeps") / f"{args.name}-{args.scale}"
    try:
        for device in args.devices:
            check_device(device, "--devices")
        options = Options(text=args.text, valid=args.valid, seeds=args.seeds, steps=args.steps, models=args.models)
        outcome = sweep(args.name, out, scale=args.scale, devices=args.devices or here(), options=options, say=say)
    except ValueError as error:
        print(f"miras sweep: {error}", file=sys.stderr)
        return 2
    except InterruptedError as stopped:
        print(f"miras sweep: {stopped}", file=sys.stderr)
        return 128 + signal.SIGTERM
    print((out / "table.md").read_text())
    print(f"{out / 'plot.svg'}, {out / 'points.csv'}")
    return 1 if outcome.failed else 0


def say(text: str) -> None:
    """Prints at once."""
    print(text, flush=True)


def here() -> tuple[str, ...]:
    """Every GPU, or one process on the CPU."""
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)

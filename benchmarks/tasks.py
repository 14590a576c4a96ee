"""Recall of pairs, needles and hidden facts, the same models: `python -m benchmarks.tasks --text TRAIN --valid VALID --out DIR`.

Every model of `benchmarks.books`, smaller, learns every task from shorter texts first, then at one length, and is asked at lengths
up to many times that. What is in the folder is not run again, so the script may be called until it is done (``--models``,
``--tasks`` for some).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import report as machine
from benchmarks.books import CHANGES, MODELS
from titans.eval import growing
from titans.experiments import Axes, Right, Scale, Trained, model, report, run
from titans.tasks import named, task
from titans.train import Config, Data, Optimizer, Records, Schedule, System

TASKS: dict[str, dict[str, Any]] = {
    "mqar, 16 pairs": {"name": "mqar", "length": 256, "pairs": 16, "tokens": 512},
    "mqar, 64 pairs": {"name": "mqar", "length": 512, "pairs": 64, "tokens": 512},
    **{name: {"name": name, "length": 2048, "text": None} for name in ("s_niah_1", "s_niah_2", "s_niah_3")},
    **{f"babilong {kind}": {"name": "babilong", "kind": kind, "length": 2048, "text": None} for kind in ("qa1", "qa2")},
}
"""Fields of tasks; those with a ``text`` hide their facts in the books that are given."""

EASIER: dict[str, dict[str, Any]] = {
    "mqar": {"length": 64, "pairs": 4},
    "s_niah_3": {"length": 1024, "repeats": 6},
    "s_niah": {"length": 512, "repeats": 6},
    "babilong": {"length": 512},
}
"""What differs in the first of two trainings, by the beginning of a task's name: shorter texts, needles told and asked often."""


def main() -> None:
    """Trains what is missing and reports."""
    args = arguments()
    devices = args.devices or ["cuda:0" if torch.cuda.is_available() else "cpu"]
    cells = [cell(t, m, args) for t in args.tasks for m in args.models]
    begin = time.time()
    outcome = run(
        cells, args.out / "cells", devices, lambda text: print(f"{time.time() - begin:.0f} s: {text}", flush=True)
    )
    axes = {t: axis(TASKS[t], args) for t in args.tasks}
    notes = [f"{vars(args)}", f"{machine.machine()}", "AdamW, cosine, the same for all models"]
    notes += [f"failed: {c.panel}, {c.series}: {error}" for c, error in outcome.failed]
    report(args.out, "Recall, needles and facts", axes, outcome.points, notes)
    found = {"arguments": {k: str(v) for k, v in vars(args).items()}, "points": [asdict(p) for p in outcome.points]}
    (args.out / "tasks.json").write_text(json.dumps(found, indent=1))
    print((args.out / "table.md").read_text())


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="a file to hide facts in while training")
    parser.add_argument("--valid", required=True, help="a file to hide facts in afterwards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--tasks", nargs="+", default=tuple(TASKS), choices=TASKS)
    parser.add_argument("--devices", nargs="+", help="one process each")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32768, help="of a step")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--graph", action="store_true", help="record passes as CUDA graphs")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--factor", type=int, default=16, help="longest text, in units of the training's")
    return parser.parse_args()


def cell(name: str, series: str, args: argparse.Namespace) -> Trained:
    """A model, trained on a task, and its questions."""
    fields = TASKS[name]
    length, hidden = fields["length"], "text" in fields
    easier = next(changes for prefix, changes in EASIER.items() if name.startswith(prefix))
    judge = Right(
        examples=args.examples,
        lengths=tuple(growing(length, args.factor)) if hidden else (),
        valid=args.valid if hidden else None,
    )
    return Trained(
        panel=name,
        series=series if hidden else "",
        x=series,
        seed=0,
        config=config(fields, series, args),
        judge=judge,
        before=(config(fields | easier, series, args),),
    )


def config(fields: Mapping[str, Any], series: str, args: argparse.Namespace) -> Config:
    """A training on a task."""
    length = fields["length"]
    sizes = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "window": 256, "length": length}
    rest: dict[str, Any] = {"batch": 0, "steps": 0, "lr": args.lr, "seeds": 1, "examples": 0, "factor": 1}
    return Config(
        steps=args.steps,
        precision=args.precision,
        model=model(series, Scale(**sizes, **rest), **CHANGES.get(series, {})),
        data=Data(source=source(fields, args), length=length, batch=max(1, args.tokens // length)),
        optimizer=Optimizer(lr=args.lr),
        schedule=Schedule(warmup=max(1, args.steps // 20)),
        system=System(graph=args.graph),
        records=Records(quiet=True, log_every=max(1, args.steps // 50), save_every=args.steps, judge_batches=1),
    )


def source(fields: Mapping[str, Any], args: argparse.Namespace) -> str:
    """The task as `titans.data.Data` takes it, facts hidden in the text that was given."""
    return "task:" + json.dumps(task({**fields} | ({"text": args.text} if "text" in fields else {})).to_dict())


def axis(fields: Mapping[str, Any], args: argparse.Namespace) -> Axes:
    """Of a task's plot."""
    hidden = "text" in fields
    chance = named(source(fields, args)).chance
    label, log = ("bytes", "x") if hidden else ("model", "")
    return Axes(x=label, y="accuracy", log=log, chance=chance if chance > 0.01 else None)


if __name__ == "__main__":
    main()

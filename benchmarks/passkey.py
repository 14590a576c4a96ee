"""A passkey, trained at 512 bytes and asked at up to 8192: `python -m benchmarks.passkey --minutes 5 --out DIR`.

Models of one size with memories, and one with windows of attention only, take the same number of steps of the same data:
first of texts that tell and ask the passkey several times, so that answers are near and far, then of texts that tell it
once, as the tests do. How many steps is measured first, so that everything takes the minutes that were given. What is in
the folder already is not run again.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report as machine
from titans.cost import cost
from titans.experiments import Axes, Right, Scale, Trained, model, report, run
from titans.train import Config, Data, Optimizer, Records, Schedule, System, train

MODELS = ("lmm", "mac", "mag", "mal", "window")
LENGTH, LENGTHS = 512, (512, 1024, 2048, 4096, 8192)
TITLE = "Passkey, trained at 512 bytes"
OFTEN, ONCE = 'task:{"name": "passkey", "repeats": 6}', "task:passkey"
SHARE = {OFTEN: 0.45, ONCE: 0.25}
"""Of the minutes, for each training; the rest is for measuring speed and accuracy."""
SHARING = 2.0
"""How much slower a model is where others are trained on the same device."""


def main() -> None:
    """Plans, trains, asks, reports."""
    args = arguments()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    plan = args.out / "plan.json"
    if not plan.exists():
        plan.write_text(json.dumps(planned(args, device)))
    steps = json.loads(plan.read_text())
    print(f"steps: {steps}", flush=True)
    cells = [cell(name, seed, steps, args) for seed in range(args.seeds) for name in args.models]
    outcome = run(cells, args.out / "cells", [device] * args.workers, lambda text: print(text, flush=True))
    sizes = {name: cost(model(name, scale(args)).build(256), tokens=LENGTH) for name in args.models}
    notes = [f"{name}: {asdict(size)}" for name, size in sizes.items()]
    notes += [f"steps {steps}, batch {args.batch}, lr {args.lr}", str(scale(args)), str(machine.machine())]
    notes += [f"failed: {c.series}, seed {c.seed}: {error}" for c, error in outcome.failed]
    axes = Axes(x="bytes", y="passkeys found", log="x")
    report(args.out, TITLE, {"passkey": axes}, outcome.points, notes)
    found = {"steps": steps, "points": [asdict(p) for p in outcome.points], "notes": notes}
    (args.out / "passkey.json").write_text(json.dumps(found, indent=1))
    print((args.out / "table.md").read_text())


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--graph", action="store_true", help="record passes as CUDA graphs")
    parser.add_argument("--workers", type=int, default=1, help="models that are trained at the same time")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--examples", type=int, default=100)
    return parser.parse_args()


def scale(args: argparse.Namespace) -> Scale:
    """One size for all models; attention sees 64 bytes, so the passkey is out of its sight."""
    rest: dict[str, Any] = {
        "length": LENGTH,
        "batch": args.batch,
        "steps": 0,
        "lr": args.lr,
        "seeds": 1,
        "examples": args.examples,
    }
    return Scale(dim=args.dim, depth=args.depth, heads=min(4, args.dim // 2), window=64, factor=16, **rest)


def config(name: str, source: str, steps: int, args: argparse.Namespace) -> Config:
    """A training."""
    return Config(
        steps=steps,
        precision=args.precision,
        model=model(name, scale(args)),
        data=Data(source=source, length=LENGTH, batch=args.batch),
        optimizer=Optimizer(lr=args.lr, weight_decay=0.01),
        system=System(graph=args.graph),
        schedule=Schedule(shape="wsd", warmup=max(1, min(50, steps // 4)), decay=0.3),
        records=Records(quiet=True, save_every=max(1, steps // 3), log_every=max(1, steps // 40), judge_batches=1),
    )


def cell(name: str, seed: int, steps: dict[str, int], args: argparse.Namespace) -> Trained:
    """A model with its two trainings."""
    often, once = (config(name, source, steps[source], args) for source in (OFTEN, ONCE))
    judge = Right(examples=args.examples, lengths=LENGTHS)
    return Trained(panel="passkey", series=name, x=LENGTH, seed=seed, config=once, before=(often,), judge=judge)


def planned(args: argparse.Namespace, device: str) -> dict[str, int]:
    """Steps of each training, the same for all models, that fit the minutes."""
    taken = args.seeds * [seconds(name, args, device) for name in args.models]
    each = SHARING * max(sum(taken) / args.workers, *taken) if args.workers > 1 else sum(taken)
    return {source: max(2, int(60 * args.minutes * share / each)) for source, share in SHARE.items()}


def seconds(name: str, args: argparse.Namespace, device: str, steps: int = 4) -> float:
    """Of a step: the difference of a longer and a shorter training, so that starting up does not count."""
    taken: list[float] = []
    for count in (2, 2 + steps):
        with tempfile.TemporaryDirectory() as folder:
            one = config(name, ONCE, count, args)
            one = replace(one, folder=folder, system=replace(one.system, device=device))
            begin = time.perf_counter()
            train(one)
            taken.append(time.perf_counter() - begin)
    return max(1e-3, (taken[1] - taken[0]) / steps)


if __name__ == "__main__":
    main()

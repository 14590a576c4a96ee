"""Bits per byte after the same number of bytes: `python -m benchmarks.books --text TRAIN --valid VALID --out DIR`.

Every model reads the same rows in the same order with the same optimizer; only the layers differ. What is in the folder is
not run again, and an interrupted training goes on, so the script may be called until it is done (``--models`` for some).
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report as machine
from titans.cost import cost
from titans.data import shards
from titans.eval import likelihood
from titans.experiments import Axes, Bits, Point, Scale, Trained, model, report, run
from titans.train import Config, Data, Model, Optimizer, Records, Schedule, System, records

MODELS = ("transformer", "gated_deltanet", "lmm", "mac", "yaad", "moneta", "memora", "ours")
CHANGES: dict[str, dict[str, Any]] = {
    "moneta": {"retention": {"name": "lq", "norm": "mean", "link_at": "chunk", "eps": 1.0}},
    "memora": {
        "algorithm": {"name": "gd", "max_lr": 2.0},
        "read": "anchor",
        "anchor_lag": 0,
        "step_bound": 8.0,
        "chunk_size": 64,
    },
    "ours": {
        "architecture": {"name": "mlp", "activation": "silu"},
        "algorithm": {"name": "momentum", "max_lr": 0.1},
        "retention": "l2",
        "chunk_size": 64,
    },
}
"""What would take minutes a step otherwise: Moneta's normaliser is frozen for a chunk, as its paper trains it (MIRAS §5.4), with
a floor of one, under which small weights are not blown up; Memora's queries read the softmax of the last chunk's logits, once in
64 tokens (its steps are those of `examples/demo.py`); and ours is Titans' perceptron under Huber's loss of the norm."""
PANELS = {
    "held-out books": Axes(x="model", y="bits per byte"),
    "by position": Axes(x="position in the segment", y="bits per byte", log="x"),
    "while training": Axes(x="bytes read", y="bits per byte"),
    "speed": Axes(x="model", y="bytes per second"),
}
HELD_OUT, POSITION, TRAINING, SPEED = PANELS


@dataclass(frozen=True, kw_only=True)
class Book(Trained):
    """A model trained on text; points for all panels."""

    def run(self, folder: Path, device: str) -> list[Point]:
        """Trains and reads the held-out text, at the training length and at eight times it."""
        model = self.fit(folder, device).eval()
        data = shards(self.config.data, "valid")
        text = torch.from_numpy(data.read(0, len(data)))
        length = self.config.data.length
        assert isinstance(self.judge, Bits)
        found = likelihood(model, text, length=length, segments=self.judge.segments)
        long = likelihood(model, text, length=8 * length, segments=max(8, self.judge.segments // 8))
        rows = [row for row in records.read(self.stage(folder)) if "bits_per_byte" in row]
        speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
        places = [(HELD_OUT, self.series, found.bits_per_byte.value)]
        places += [(POSITION, x, value) for x, value in long.curve()]
        places += [(TRAINING, x, value) for x, value in smoothed(rows, self.config)]
        places += [(SPEED, self.series, speeds[len(speeds) // 2])]
        points = [replace(self.point((value, math.nan, math.nan), x), panel=panel) for panel, x, value in places]
        points[0] = replace(points[0], low=found.bits_per_byte.low, high=found.bits_per_byte.high)
        return [replace(p, series="") if isinstance(p.x, str) else p for p in points]


def smoothed(rows: list[dict], config: Config, points: int = 30) -> list[tuple[float, float]]:
    """The training loss over spans of equal length."""
    size = max(1, len(rows) // points)
    parts = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    tokens = config.data.batch * config.data.length
    return [(part[-1]["step"] * tokens, sum(row["bits_per_byte"] for row in part) / size) for part in parts]


def main() -> None:
    """Trains what is missing and reports."""
    args = arguments()
    devices = args.devices or ["cuda" if torch.cuda.is_available() else "cpu"]
    cells = [cell(name, seed, args) for seed in range(args.seeds) for name in args.models]
    begin = time.time()
    outcome = run(
        cells, args.out / "cells", devices, lambda text: print(f"{time.time() - begin:.0f} s: {text}", flush=True)
    )
    report(
        args.out,
        f"Books, {args.budget / 1e6:g} MB read once or in part",
        PANELS,
        outcome.points,
        notes(args, outcome.failed),
    )
    found = {"arguments": {k: str(v) for k, v in vars(args).items()}, "points": [asdict(p) for p in outcome.points]}
    (args.out / "books.json").write_text(json.dumps(found, indent=1))
    print((args.out / "table.md").read_text())


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="to train on: files, .xz too, documents separated by NUL")
    parser.add_argument("--valid", help="to measure on; none for a part of the text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=50e6, help="bytes that every model reads")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--devices", nargs="+", help="one process each; one may stand here several times")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, help="rows computed at a time, if the batch does not fit")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--graph", action="store_true", help="record passes as CUDA graphs")
    parser.add_argument("--segments", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args()


def built(name: str, args: argparse.Namespace) -> Model:
    """A model of the size that was asked for."""
    sizes = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "window": 256, "length": args.length}
    rest: dict[str, Any] = {"batch": args.batch, "steps": 0, "lr": args.lr, "seeds": 1, "examples": 0, "factor": 1}
    return model(name, Scale(**sizes, **rest), **CHANGES.get(name, {}))


def cell(name: str, seed: int, args: argparse.Namespace) -> Book:
    """A model and its training."""
    steps = max(1, int(args.budget) // (args.batch * args.length))
    config = Config(
        steps=steps,
        precision=args.precision,
        model=built(name, args),
        data=Data(source=args.text, valid=args.valid, length=args.length, batch=args.batch),
        optimizer=Optimizer(lr=args.lr),
        schedule=Schedule(warmup=max(1, steps // 20)),
        system=System(micro_batch=args.micro, compile=args.compile, checkpointing=args.checkpointing, graph=args.graph),
        records=Records(quiet=True, log_every=max(1, steps // 200), save_every=max(1, steps // 5), keep=1),
    )
    return Book(panel=HELD_OUT, series=name, x=name, seed=seed, config=config, judge=Bits(segments=args.segments))


def notes(args: argparse.Namespace, failed: list) -> list[str]:
    """How every row was made; nothing was tuned for one model alone."""
    lines = [
        f"{name}: {cost(built(name, args).build(256), tokens=args.length)}".replace("\n", "; ") for name in args.models
    ]
    lines += [f"{name}: {built(name, args).memory!r}" for name in args.models if name != "transformer"]
    lines += [f"AdamW, cosine, lr {args.lr} for all models", f"{vars(args)}", f"{machine.machine()}"]
    return lines + [f"failed: {c.series}, seed {c.seed}: {error}" for c, error in failed]


if __name__ == "__main__":
    main()

"""A trained model reads millions of bytes in constant memory: `python -m benchmarks.millions [RUN] --length 2000000 --out DIR`.

Without a run, the memory layers of `benchmarks.passkey` (MAL) learn to find passkeys first, in ``DIR/run``. The texts are those of
a task (``passkey``, ``babilong``, or any other that `miras eval` takes), a few rows side by side. What
the model remembers is measured as the text goes by; whether its answers at the end are right is counted, chance or not.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks import meter, passkey, report
from titans.data import inputs
from titans.eval import wilson
from titans.loss import IGNORED
from titans.model import TitansLM
from titans.tasks import Task, task
from titans.train import Config, pretrained, train
from titans.train.passes import computed

LOOKS = 16
"""How often memory is measured on the way."""


@dataclass
class Reading:
    """One pass over the rows of a batch.

    Attributes:
        length: tokens of a row.
        rows: texts side by side.
        right: rows whose answers are all right.
        tokens_per_second: of all rows.
        mib: in use at evenly spaced points: of the device, or of the process on a CPU.
    """

    length: int
    rows: int
    right: int
    tokens_per_second: float
    mib: list[float]


@torch.no_grad()
def read(run: Path, asked: Task, rows: int, chunk: int, device: str) -> Reading:
    """Reads test examples to their end."""
    model, checkpoint = pretrained(run)
    config = Config.read(checkpoint / "run.json")
    with computed(config.precision, config.model.memory, device):
        return _reading(model.to(device).eval(), asked, rows, chunk, device)


def _reading(model: TitansLM, asked: Task, rows: int, chunk: int, device: str) -> Reading:
    tokens, _, labels = inputs(asked.batch(range(rows), split="test"))
    length, cache = tokens.shape[1], None
    right = torch.ones(rows, dtype=torch.bool)
    looks = {(i + 1) * (length // chunk) // LOOKS for i in range(LOOKS)}
    mib: list[float] = []
    begin = time.perf_counter()
    for n, start in enumerate(range(0, length, chunk)):
        part = slice(start, start + chunk)
        x, cache = model.hidden(tokens[:, part].to(device), cache)
        wanted = labels[:, part]
        if (wanted != IGNORED).any():
            said = model.logits(x).argmax(-1).cpu()
            right &= ((said == wanted) | (wanted == IGNORED)).all(1)
        if n + 1 in looks:
            mib.append(torch.cuda.memory_allocated() / 2**20 if device.startswith("cuda") else meter.resident())
    rate = tokens.numel() / (time.perf_counter() - begin)
    return Reading(length, rows, int(right.sum()), rate, mib)


def trained(args: argparse.Namespace) -> Path:
    """A model that has learned of passkeys in two trainings, where it is already or now."""
    sizes = argparse.Namespace(dim=128, depth=2, batch=64, lr=4e-3, examples=100, graph=args.graph)
    sizes.precision = "bfloat16" if args.device.startswith("cuda") else "float32"
    stages = [
        replace(passkey.config("mal", source, steps, sizes), folder=str(args.out / "run" / str(i)))
        for i, (source, steps) in enumerate(zip((passkey.OFTEN, passkey.ONCE), args.steps, strict=True))
    ]
    torch.manual_seed(0)
    model = TitansLM(stages[0].model.build(256)).to(args.device)
    for stage in stages:
        train(replace(stage, system=replace(stage.system, device=args.device)), model)
    return Path(stages[-1].folder)


def main() -> None:
    """Reads, reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--task", default="passkey")
    parser.add_argument("--length", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, nargs=2, default=(600, 400), help="of texts that tell it often, and once")
    parser.add_argument("--graph", action="store_true", help="record the training's passes as CUDA graphs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.run is None and args.out is None:
        parser.error("name a run, or --out for one that is to be trained")
    run = args.run or trained(args)
    found = read(run, task(args.task, length=args.length), args.rows, args.chunk, args.device)
    print(f"{found.rows} texts of {found.length:,} tokens, {found.tokens_per_second:,.0f} tokens a second together")
    share = wilson(found.right, found.rows)
    print(f"right: {found.right} of {found.rows}, 95% interval {share.low:.2f} to {share.high:.2f}")
    print("MiB: " + " ".join(f"{m:.1f}" for m in found.mib))
    if args.out:
        report.save(args.out, "millions", {"machine": report.machine(), "run": str(run)} | asdict(found))


if __name__ == "__main__":
    main()

"""A trained model reads millions of bytes in constant memory: `python -m benchmarks.millions RUN --length 2000000`.

The texts are those of a task (``passkey``, ``babilong``, or any other that `miras eval` takes), a few rows side by side. What
the model remembers is measured as the text goes by; whether its answers at the end are right is counted, chance or not.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import meter, report
from titans.data import inputs
from titans.eval import wilson
from titans.loss import IGNORED
from titans.tasks import Task, task
from titans.train import pretrained

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
    model, _ = pretrained(run)
    model = model.to(device).eval()
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


def main() -> None:
    """Reads, reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", default="passkey")
    parser.add_argument("--length", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = read(args.run, task(args.task, length=args.length), args.rows, args.chunk, args.device)
    print(f"{found.rows} texts of {found.length:,} tokens, {found.tokens_per_second:,.0f} tokens a second together")
    share = wilson(found.right, found.rows)
    print(f"right: {found.right} of {found.rows}, 95% interval {share.low:.2f} to {share.high:.2f}")
    print("MiB: " + " ".join(f"{m:.1f}" for m in found.mib))
    if args.out:
        report.save(args.out, "millions", {"machine": report.machine(), "run": str(args.run)} | asdict(found))


if __name__ == "__main__":
    main()

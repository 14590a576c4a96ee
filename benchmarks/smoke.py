"""Does a memory help? A tiny MAC on real text longer than its segments, against the same model without a memory.

python -m benchmarks.smoke            # 300 steps, 3 seeds, minutes on a CPU
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from titans import TitansConfig, TitansLM, preset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from _text import load  # pyright: ignore[reportMissingImports]

LENGTH, BATCH, SEGMENT = 192, 4, 32


def models(kind: str) -> dict[str, TitansConfig]:
    """The model, the same without memory, and the latter with a SwiGLU as much wider as the memory has parameters."""
    memory = preset("tiny", kind, segment=SEGMENT, window=SEGMENT)
    plain = replace(memory, layers=tuple("segment" if kind == "mac" else "swa" for _ in memory.layers))
    sizes = [sum(p.numel() for p in TitansLM(c).parameters()) for c in (memory, plain)]
    wider = plain.width + -(-(sizes[0] - sizes[1]) // (3 * plain.dim * len(plain.layers)))
    return {kind: memory, "without": plain, "without, as many parameters": replace(plain, hidden=wider)}


def batches(data: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Random pieces of a text."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(data) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([data[s : s + LENGTH] for s in starts.tolist()]).long()


def train(config: TitansConfig, data: Tensor, steps: int, seed: int) -> TitansLM:
    """AdamW, a short warm-up, a cosine to a tenth."""
    torch.manual_seed(seed)
    model = TitansLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 3e-4)
    for x in batches(data, steps, seed):
        optimizer.zero_grad()
        model(x, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
        cosine.step()
    return model


@torch.no_grad()
def judge(model: TitansLM, data: Tensor) -> tuple[float, float]:
    """Held-out nats a byte: over all of a piece, and beyond its first two segments."""
    losses = []
    for x in batches(data, 16, seed=-1):
        logits = model(x)[:, :-1]
        losses.append(F.cross_entropy(logits.mT, x[:, 1:], reduction="none"))
    every = torch.cat(losses)
    return every.mean().item(), every[:, 2 * SEGMENT :].mean().item()


def main() -> None:
    """Trains, judges, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kind", default="mac")
    options = parser.parse_args()
    text = load()
    rows: list[list[str]] = []
    for name, config in models(options.kind).items():
        found = [judge(train(config, text.train, options.steps, s), text.held_out) for s in range(options.seeds)]
        count = sum(p.numel() for p in TitansLM(config).parameters())
        each = " ".join(f"{late:.3f}" for _, late in found)
        rows.append(
            [name, f"{count / 1e3:.0f}K", f"{mean(f for f, _ in found):.3f}", f"{mean(x for _, x in found):.3f}", each]
        )
    header = ["model", "parameters", "held-out nats a byte", "beyond two segments", "seeds"]
    title = f"{options.steps} steps of {BATCH} x {LENGTH} bytes of {text.source}, segments of {SEGMENT}"
    report.table(title, header, rows)


if __name__ == "__main__":
    main()

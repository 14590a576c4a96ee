"""Training speed of whole models: `python -m benchmarks.models [--sizes 170m 340m] [--lengths 4096 32768] [--json FILE]`.

Models of the published widths and depths take optimizer steps on random tokens, in bfloat16 under autocast, as
`titans.train` does. Tokens a second are medians over steps; MFU counts 6 operations for every parameter but the
embedding and every token, and neither attention nor the memories' own updates, over the cards' bfloat16 rate.

On several GPUs, `torchrun --nproc-per-node 2 -m benchmarks.models`: every card takes ``--tokens``, gradients are averaged.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks import rows as forms
from benchmarks.books import CHANGES
from titans.config import TitansConfig, preset
from titans.experiments import MEMORIES, MODELS
from titans.model import TitansLM
from titans.train import System
from titans.train.parallel import World, world
from titans.train.passes import Objective, Recorded, products
from titans.train.records import peak

NAMES = ("transformer", "gated_deltanet", "lmm", "mac", "yaad", "moneta", "memora")


@dataclass
class Speed:
    """What one model reached."""

    model: str
    size: str
    length: int
    batch: int
    cards: int
    parameters: int = 0
    tokens_per_second: float = 0.0
    slowest: float = 0.0
    fastest: float = 0.0
    mfu: float = 0.0
    gib: float = 0.0
    first_step: float = 0.0
    path: str = ""
    error: str = ""


def config(name: str, size: str) -> TitansConfig:
    """The published width and depth around a memory as the experiments have it."""
    kind, memory = MODELS[name]
    return preset(size, kind, memory=MEMORIES[memory] | CHANGES.get(name, {}), window=512, segment=512)


def measure(name: str, size: str, length: int, ranks: World, args: argparse.Namespace) -> Speed:
    """Some steps of training."""
    torch.manual_seed(0)
    device = ranks.device.type
    found = Speed(name, size, length, max(1, args.tokens // length), ranks.size)
    try:
        model = TitansLM(config(name, size)).to(ranks.device)
        model.checkpointing = args.recompute
        found.path = paths(model, device)
        if args.compile:
            for layer in model.layers:
                layer.compile()
        weights = sum(p.numel() for p in model.parameters())
        found.parameters = weights
        objective = ranks.wrap(Objective(model), model.layers, args.graph)
        precision = partial(torch.autocast, device, torch.bfloat16)
        recorded = Recorded(objective, precision) if args.graph else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        x = torch.randint(model.embedding.num_embeddings, (found.batch, length), device=ranks.device)
        target = x.roll(-1, 1)
        times: list[float] = []
        for _ in range(args.steps + 2):
            begin = time.perf_counter()
            if recorded:
                loss = recorded(x, target, 1 / x.numel())
                ranks.average(model)
            else:
                with precision():
                    loss = objective(x, None, target, None)[0] / x.numel()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=not args.graph)
            assert torch.isfinite(loss)  # and waits for the device
            times.append(time.perf_counter() - begin)
        found.first_step, rates = times[0], [ranks.size * x.numel() / t for t in times[2:]]
        found.tokens_per_second, found.slowest, found.fastest = statistics.median(rates), min(rates), max(rates)
        rate = ranks.size * (peak(ranks.device) or float("nan"))
        found.mfu = 6 * (weights - model.embedding.weight.numel()) * found.tokens_per_second / rate
        found.gib = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    except Exception as error:  # the other rows are worth having
        found.error = f"{type(error).__name__}: {error}"[:300]
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def paths(model: TitansLM, device: str) -> str:
    """Which path the memories take."""
    from miras import Memory

    where = torch.device(device), torch.bfloat16
    memories = [m for m in model.modules() if isinstance(m, Memory)]
    plans = [m.core.plan(m.head_dim, m.head_dim, 1, where) for m in memories]
    return ", ".join(sorted({p.kernel.name if p.kernel else p.path for p in plans})) or "attention"


def main() -> None:
    """Measures and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["170m", "340m"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 32768])
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--tokens", type=int, default=32768, help="of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="layers again in the backward pass, for their memory")
    parser.add_argument("--graph", action="store_true", help="record passes as CUDA graphs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp"))
    args = parser.parse_args()
    with world(System(parallel=args.parallel)) as ranks:
        speeds(args, ranks)


def speeds(args: argparse.Namespace, ranks: World) -> None:
    """Every model in every size."""
    rows: list[dict[str, Any]] = []
    for size, length, name in itertools.product(args.sizes, args.lengths, args.models):
        with products("bfloat16", config(name, size).memory):
            found = measure(name, size, length, ranks, args)
        rows.append(asdict(found))
        if ranks.is_first:
            print(
                f"{size} T={length} {name:<15} {found.tokens_per_second / 1e3:8.1f} kilotokens/s "
                f"[{found.slowest / 1e3:.1f} {found.fastest / 1e3:.1f}] on {ranks.size}, MFU {found.mfu:.1%} {found.gib:.1f} GiB "
                f"first step {found.first_step:.1f} s, {found.path} {found.error}",
                flush=True,
            )
            if args.json:
                save(args, rows)


def save(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Rows so far, as the documentation reads them."""
    where = report.machine() | (report.card() if torch.cuda.is_available() else {})
    wrong = "; ".join(f"{r['model']}, {r['size']}, T{r['length']}: {r['error']}" for r in rows if r["error"])
    how = f"layers {'' if args.compile else 'not '}compiled, passes {'' if args.graph else 'not '}replayed from a graph"
    note = f"bfloat16 under autocast, {'layers computed again in the backward pass, ' * args.recompute}{how}. {wrong}"
    report.write(args.json, "Training whole models", "python -m benchmarks.models", where, forms.models(rows), note)


if __name__ == "__main__":
    main()

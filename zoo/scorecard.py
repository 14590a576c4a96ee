"""What chunks change, and what a small layer recalls: figures for every entry, measured, never typed.

``python -m zoo.scorecard [NAME ...]`` measures the entries (all but hybrids, if none is named), each on one CPU thread, and writes
`SCORECARD` after every one; the documentation makes its table from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miras.spec import MirasSpec
from zoo._catalogue import ENTRIES, load

SCORECARD = Path(__file__).with_name("scorecard.json")
"""Where the figures are kept."""


MEASURED = [name for name in ENTRIES if not name.endswith("_h")]
"""Entries that have figures; the memory of a hybrid is that of the entry without attention."""


@dataclass(frozen=True)
class Score:
    """The figures of one entry.

    Attributes:
        distance: for chunk sizes, how far answers are from those of the token recurrence, relative to these; only of
            entries whose answers depend on chunks.
        recall: share of queries that the recommended form answers right, in sequences never trained on, after thirty
            seconds of training on one CPU (at least one step); None where the loss was no number before a first look.
        steps: training steps in that time; 0 where they have not been measured.
    """

    distance: dict[int, float] = field(default_factory=dict[int, float])
    recall: float | None = None
    steps: int = 0


# --- Chunks ---------------------------------------------------------------------------------------------------------

TOKENS = 256
CHUNKS = (4, 16, 64)


def distance(name: str) -> dict[int, float]:
    """How far the published form in chunks is from the recurrence token by token, on random inputs at initial gates."""
    x = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = answers(name, x, 1)
    found = {chunk: float((answers(name, x, chunk) - exact).norm() / exact.norm()) for chunk in CHUNKS}
    return {chunk: d for chunk, d in found.items() if d > 1e-6}


@torch.no_grad()
def answers(name: str, x: Tensor, chunk: int) -> Tensor:
    """What the memory of a layer answers, whose parameters are the same for every chunk size."""
    torch.manual_seed(0)
    around = {"output_norm": False, "output_gate": False}
    layer: Any = load(name, dim=x.shape[-1], heads=2, around=around, **in_chunks(ENTRIES[name].spec, chunk)).double()
    nn.init.eye_(layer.out.weight)
    return layer(x)[0]


def in_chunks(spec: MirasSpec, chunk: int) -> dict[str, Any]:
    """Overrides for chunks of this size; token by token every link is that of the token."""
    changes: dict[str, Any] = {"chunk_size": chunk, "anchor_lag": min(spec.anchor_lag, chunk - 1)}
    if chunk == 1 and spec.retention.link_at == "chunk":
        changes["retention"] = {"link_at": "token"}
    return changes


# --- Recall ---------------------------------------------------------------------------------------------------------

KEYS, WRITES, SYMBOLS, DIM, BATCH = 8, 2, 32, 64, 32
ROWS = {"atlas": 8, "atlas_pp": 4}
"""Of a batch, how many are computed at a time where all do not fit into memory."""
SECONDS, EVERY, ENOUGH = 30.0, 50, 0.995
"""Training stops after so many seconds of one CPU, or, looked at so often, where the share of right answers is enough."""


def recall(name: str) -> tuple[float | None, int]:
    """Accuracy of associative recall after training, and the steps it took.

    Every key is written more than once, each time with another value, and asked for the latest. A delta rule replaces
    what is there. A sum of all writes is the same in whatever order they came, so that a memory which only adds can but
    guess among the values of a key, however many numbers it has. None where the loss is no number before a first look.
    """
    torch.manual_seed(0)
    model = Recaller(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    generator, held_out = torch.Generator().manual_seed(1), sequences(4 * BATCH, torch.Generator().manual_seed(2))
    best, step, end = None, 0, time.process_time() + SECONDS
    while time.process_time() < end:
        step += 1
        optimizer.zero_grad()
        rows = ROWS.get(name, BATCH)
        for tokens, wanted in zip(*(t.split(rows) for t in sequences(BATCH, generator)), strict=True):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), wanted.flatten()) * (rows / BATCH)
            if not loss.isfinite():
                return best, step
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0 or time.process_time() >= end:
            best = max(best or 0.0, accuracy(model, *held_out, rows))
            if best >= ENOUGH:
                break
    return best, step


def sequences(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, 2 (WRITES + 1) KEYS]``, keys and their values, then every key before a blank; the latest values ``[B, KEYS]``."""
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)[:, :KEYS]
    order = torch.rand(batch, WRITES * KEYS, generator=generator).argsort(1)
    written = keys.repeat(1, WRITES).gather(1, order)
    values = torch.randint(SYMBOLS, written.shape, generator=generator)
    latest = ((keys[..., None] == written[:, None]) * torch.arange(WRITES * KEYS)).argmax(-1)
    context = torch.stack([written, SYMBOLS + values], -1).flatten(1)
    asked = torch.stack([keys, torch.full_like(keys, 2 * SYMBOLS)], -1).flatten(1)
    return torch.cat([context, asked], 1), values.gather(1, latest)


class Recaller(nn.Module):
    """One layer of memory between an embedding and a classifier."""

    def __init__(self, name: str):
        super().__init__()
        spec = ENTRIES[name].point("recommended")
        chunk = min(spec.chunk_size, KEYS)
        options = {"chunk_size": chunk, "anchor_lag": min(spec.anchor_lag, chunk - 1)}
        self.embed = nn.Embedding(2 * SYMBOLS + 1, DIM)
        self.norm = nn.RMSNorm(DIM)
        self.memory = load(name, dim=DIM, heads=2, form="recommended", around={"conv": 4}, **options)
        self.classify = nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, SYMBOLS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the answer at every key that is asked for, ``[B, KEYS, SYMBOLS]``."""
        x = self.embed(tokens)
        x = x + self.memory(self.norm(x))[0]
        return self.classify(x[:, 2 * WRITES * KEYS :: 2])


@torch.no_grad()
def accuracy(model: Recaller, tokens: Tensor, wanted: Tensor, rows: int) -> float:
    """Share of answers that are right, from so many rows at a time."""
    answers = torch.cat([model(part).argmax(-1) for part in tokens.split(4 * rows)])
    return float((answers == wanted).double().mean())


# --- The file -------------------------------------------------------------------------------------------------------


def read(path: Path = SCORECARD) -> dict[str, Score]:
    """The figures measured so far."""
    if not path.exists():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text())
    return {
        name: Score({int(c): d for c, d in score["distance"].items()}, score["recall"], score["steps"])
        for name, score in stored.items()
    }


def write(scores: dict[str, Score], path: Path = SCORECARD) -> None:
    """Keeps figures, in the order of the zoo, with as many digits as mean something."""
    rows = {
        name: asdict(scores[name])
        | {
            "distance": {c: float(f"{d:.2g}") for c, d in scores[name].distance.items()},
            "recall": None if (share := scores[name].recall) is None else round(share, 3),
        }
        for name in ENTRIES
        if name in scores
    }
    path.write_text(json.dumps(rows, indent=1) + "\n")


# --- The command ----------------------------------------------------------------------------------------------------


def figures(name: str, only: str | None = None) -> tuple[str, dict[str, Any]]:
    """The entry's name and fields of its `Score`, of one of ``recall`` and ``distance`` or of both, on one thread."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if only != "distance":
        found["recall"], found["steps"] = recall(name)
    if only != "recall":
        found["distance"] = distance(name)
    return name, found


def measured(names: Sequence[str], only: str | None, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of entries as they are done; with several jobs, each in a process of its own."""
    if jobs == 1:
        yield from map(partial(figures, only=only), names)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(figures, name, only) for name in names]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or an interrupt, what has not begun never does


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and keeps the figures of every entry as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m zoo.scorecard", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to measure; all if none is named")
    parser.add_argument("--only", choices=["recall", "distance"], help="measure this and leave the other as it is")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="entries at a time, each on one CPU thread")
    asked = parser.parse_args(arguments)
    names, scores = [ENTRIES[name].name for name in asked.names] or MEASURED, read()
    for name, found in measured(names, asked.only, asked.jobs):
        scores[name] = replace(scores.get(name, Score()), **found)
        write(scores)
        sys.stdout.write(f"{name:<22}{scores[name]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

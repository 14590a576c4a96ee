"""Needles in a stream of noise: which models still find them when the text is longer than those they learned from?

    python -m benchmarks.needle --device cuda        # minutes on a GPU

A text is noise of 64 symbols. At random places stand needles, a key and a value; at the end the keys come again in
another order and the model says the values. Models learn at 512 tokens and are asked at up to 8192. All are of two
layers, width 64 and as many parameters; their windows and segments are 64 tokens.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from titans import TitansConfig, TitansLM, preset

NOISE, KEYS, VALUES, NEEDLES = 64, 32, 32, 4
VOCABULARY = NOISE + KEYS + VALUES
LEARNED, ASKED = 512, (512, 1024, 2048, 4096, 8192)
WINDOW = 64


def texts(batch: int, length: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts ``[B, length]`` and what follows the keys at their ends, ``[B, NEEDLES]``."""

    def distinct(count: int, of: int) -> Tensor:
        return torch.rand(batch, of, generator=generator, device=device).argsort(1)[:, :count]

    x = torch.randint(NOISE, (batch, length), generator=generator, device=device)
    keys, values = distinct(NEEDLES, KEYS), distinct(NEEDLES, VALUES)
    body = length - 2 * NEEDLES
    places = 2 * distinct(NEEDLES, body // 2)
    x.scatter_(1, places, keys + NOISE).scatter_(1, places + 1, values + NOISE + KEYS)
    order = distinct(NEEDLES, NEEDLES)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    x[:, body::2], x[:, body + 1 :: 2] = asked + NOISE, answers + NOISE + KEYS
    return x, answers + NOISE + KEYS


def models() -> dict[str, TitansConfig]:
    """Every kind, and a sliding window as large as the largest of them."""
    usual: dict[str, Any] = {
        "vocabulary": VOCABULARY,
        "window": WINDOW,
        "segment": WINDOW,
        "memory": {"chunk_size": 64},
    }
    made = {kind: preset("tiny", kind, **usual) for kind in ("lmm", "mac", "mag", "mal", "swa")}
    sizes = {kind: sum(p.numel() for p in TitansLM(c).parameters()) for kind, c in made.items()}
    plain = made["swa"]
    wider = plain.width + (max(sizes.values()) - sizes["swa"]) // (3 * plain.dim * len(plain.layers))
    return made | {"swa": replace(plain, hidden=wider)}


def said(model: TitansLM, x: Tensor) -> Tensor:
    """Logits in front of every answer, ``[B, NEEDLES, V]``."""
    hidden, _ = model.hidden(x)
    return model.logits(hidden[:, x.shape[1] - 2 * NEEDLES :: 2])


def train(config: TitansConfig, steps: int, batch: int, seed: int, device: torch.device) -> TitansLM:
    """AdamW on the answers; lengths grow from 64 to 512 over the first half, so that there is something to start from."""
    torch.manual_seed(seed)
    model, generator = TitansLM(config).to(device), torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        length = LEARNED if 2 * step > steps else 64 * 2 ** (8 * step // steps)
        x, answers = texts(batch, min(length, LEARNED), generator, device)
        optimizer.zero_grad()
        F.cross_entropy(said(model, x).mT, answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def judge(model: TitansLM, length: int, device: torch.device, count: int = 64) -> float:
    """Answers that are right, of 4 x 64 at that length."""
    generator, right = torch.Generator(device).manual_seed(10**6 + length), []
    for _ in range(count // 16):
        x, answers = texts(16, length, generator, device)
        right.append((said(model, x).argmax(-1) == answers).float().mean().item())
    return sum(right) / len(right)


def draw(found: dict[str, list[float]], lengths: tuple[int, ...], path: Path) -> None:
    """Accuracy by length, one line a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, accuracy in found.items():
        axes.plot(lengths, accuracy, marker="o", label=name)
    axes.axhline(1 / VALUES, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="tokens", ylabel="needles found", ylim=(0, 1.03), xticks=lengths)
    axes.set_xticks(lengths, [str(n) for n in lengths], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Trains, asks, prints the table, and writes table and plot to ``runs``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--lengths", nargs="*", type=int, default=ASKED)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    lengths, found, rows = tuple(options.lengths), {}, []
    for name, config in models().items():
        if options.only and name not in options.only:
            continue
        begin = perf_counter()
        model = train(config, options.steps, options.batch, options.seed, options.device)
        found[name] = [judge(model, n, options.device) for n in lengths]
        size = sum(p.numel() for p in model.parameters())
        seconds = perf_counter() - begin
        rows.append([name, f"{size / 1e3:.0f}K", *(f"{a:.0%}" for a in found[name]), f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    header = ["model", "parameters", *map(str, lengths), "seconds"]
    report.table(f"Needles found, {options.steps} steps at {LEARNED} tokens, {options.device}", header, rows)
    report.save(options.out, "needle", {"lengths": lengths, "found": found, "steps": options.steps})
    draw(found, lengths, options.out / "needle.svg")


if __name__ == "__main__":
    main()

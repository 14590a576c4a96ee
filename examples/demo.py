"""Composes memories, trains a small byte language model with each on real text, and compares them with none.

About two minutes on two cores: ``python examples/demo.py``; see ``--help``.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import _report
import _text
import torch
from _model import ByteModel, Config, State, restore, state_bytes
from _text import VOCABULARY
from _train import Result, Settings, run_all
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from miras import MirasSpec

# A memory that no paper has: any four choices make one. Change it, and run `demo.py --only custom`.
CUSTOM = MirasSpec.make(
    architecture={"name": "feature_map", "kind": "elu"},
    bias="huber_norm",
    retention={"name": "elastic_net", "form": "ftrl"},
    algorithm={"name": "aggmo", "betas": (0.0, 0.5, 0.9), "max_lr": 4.0},
    chunk_size=32,
    step_bound=8.0,
)

MLP = {"name": "mlp", "expansion": 2}
COMMON: dict[str, Any] = {"architecture": MLP, "chunk_size": 32, "step_bound": 4.0}
LQ = {"name": "lq", "link_at": "chunk"}

SPECS: dict[str, MirasSpec | None] = {
    "titans": MirasSpec.make(bias="l2", retention="l2", algorithm="momentum", **COMMON),
    # As printed, a step grows by sqrt(d) where the error's norm crosses the threshold; measured by its rms it does not.
    "yaad": MirasSpec.make(
        bias={"name": "yaad", "norm": "rms", "delta": 2.0}, retention="l2", algorithm="gd", **COMMON
    ),
    "moneta": MirasSpec.make(bias={"name": "lp", "p": 3.0}, retention=LQ, algorithm="gd", **COMMON),
    # Steps in the exponent are steps in ratios of weights, which are one on average: larger ones are needed. Every token
    # reads a softmax of all weights of its own; a perceptron no wider than its input keeps that cheap. Averages differ little:
    # in texts as short as these a norm may magnify the differences.
    "memora": MirasSpec.make(
        bias="l2",
        retention={"name": "kl", "scale": "size"},
        algorithm={"name": "gd", "max_lr": 2.0},
        anchor_lag=1,
        **COMMON | {"architecture": {"name": "mlp", "expansion": 1, "eps": 1e-6}, "step_bound": 8.0},
    ),
    "custom": CUSTOM,
    "baseline": None,
}

PROMPT = "import os\n\n\nclass "

Say = Callable[..., None]
"""Prints on the screen and into the log."""


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    settings = Settings(steps=options.steps, seed=options.seed, text=options.text)
    specs = {name: spec for name, spec in SPECS.items() if name == "baseline" or name in (options.only or SPECS)}
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.txt").open("w") as file:
        screen, log = Console(markup=False, highlight=False), Console(file=file, width=140, markup=False)

        def say(thing: object, end: str = "\n") -> None:
            for console in (screen, log):
                console.print(thing, end=end, soft_wrap=isinstance(thing, str))

        results = compare(specs, settings, options.out, screen, say)
        best = min(results.values(), key=lambda result: sum(result.held_out))
        generate(best.name, settings, options.out, say)
        say(f"\nEverything is in {options.out}: plot.png, results.json, log.txt and a checkpoint of every model.")


def compare(
    specs: Mapping[str, MirasSpec | None], settings: Settings, out: Path, screen: Console, say: Say
) -> dict[str, Result]:
    """Trains a model with every spec and shows how they do."""
    text = _text.load(settings.text)
    say(f"Text: {text.source}; {len(text.train):,} bytes to learn from, {len(text.held_out):,} bytes held out.")
    say(
        f"Every model sees {settings.steps} batches, {settings.batch} x {settings.length} bytes each; seed {settings.seed}."
    )
    say(_report.specs_table(specs))
    started = time.perf_counter()
    configs = {name: Config(spec=spec.to_dict() if spec else None) for name, spec in specs.items()}
    results = train_all(configs, settings, out, screen)
    say(f"Trained, judged and saved in {time.perf_counter() - started:.0f} s.")
    say(_report.results_table(results, results["baseline"]))
    _report.plot(results, results["baseline"], out / "plot.png")
    _report.write_json(results, {"settings": dataclasses.asdict(settings), "text": text.source}, out / "results.json")
    return results


def train_all(configs: Mapping[str, Config], settings: Settings, out: Path, screen: Console) -> dict[str, Result]:
    """Trains every model behind a progress bar of its own."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=screen) as progress:
        tasks = {name: progress.add_task(name, total=settings.steps, start=False, now="") for name in configs}

        def report(name: str, step: int, loss: float, speed: float) -> None:
            progress.start_task(tasks[name])
            now = f"loss {loss * math.log(2):.3f}, {loss:.3f} bits per byte, {speed:,.0f} bytes/s"
            progress.update(tasks[name], completed=step, now=now)

        return run_all(configs, settings, out, report)


def generate(name: str, settings: Settings, out: Path, say: Say, prompt: str = PROMPT, length: int = 500) -> None:
    """Writes with a model that is read back from its checkpoint, byte by byte, in constant memory."""
    say(f"\n{name!r}, read back from {out / name}, goes on from {prompt!r} at temperature 0.7:\n")
    sizes: list[int] = []
    for text, states in stream(restore(out / name), prompt.encode(), length, 0.7, settings.seed):
        say(text, end="")
        sizes.append(state_bytes(states))
    say(f"\n\nState after the first byte: {sizes[0]:,} bytes; after {len(sizes)} bytes: {sizes[-1]:,} bytes.")


@torch.no_grad()
def stream(model: ByteModel, prompt: bytes, length: int, heat: float, seed: int) -> Iterator[tuple[str, list[State]]]:
    """Characters as their bytes come, one `ByteModel.step` each, with the state, which is all that the model keeps."""
    generator = torch.Generator().manual_seed(seed)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    logits, states = torch.zeros(1, VOCABULARY), None
    for n in range(len(prompt) + length):
        drawn = torch.multinomial((logits / heat).softmax(-1), 1, generator=generator)[:, 0]
        token = torch.tensor([prompt[n]]) if n < len(prompt) else drawn
        logits, states = model.step(token, states)
        text = decode(bytes(token.tolist()))
        # a young model may write anything, a terminal's control codes too
        yield "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text), states


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps of every model (%(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn this file instead of the standard library")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new or empty directory (runs/demo-<time>)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of weights, batches and samples (%(default)s)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help=f"with the baseline; repeatable: {', '.join(SPECS)}"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path("runs", f"demo-{datetime.now():%Y%m%d-%H%M%S}")
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    if unknown := set(options.only or ()) - SPECS.keys():
        parser.error(f"--only knows {', '.join(SPECS)}; got {', '.join(sorted(unknown))}")
    if options.text is not None and not options.text.is_file():
        parser.error(f"--text must be a file, got {options.text}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out must be a new or empty directory, got {options.out}")
    return options


if __name__ == "__main__":
    main()

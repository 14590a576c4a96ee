"""``miras eval``."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from titans.cli._flags import check_folder, parse
from titans.data import Data, shards, tokenizer
from titans.eval import accuracy, by_chunk, growing, likelihood
from titans.eval.harness import harness
from titans.model import TitansLM
from titans.tasks import Task, named
from titans.train import Config, pretrained
from titans.train.parallel import check_device
from titans.train.passes import computed


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measures a trained model; rows of any length are read in pieces, so memory does not grow with them.

    Args:
        run: folder of a run, or one of its checkpoints.
        task: a name or JSON; none for the task it was trained on, or bits per byte if that was text.
        data: a text to measure on; none for the held-out part of what it was trained on.
        lengths: of examples, or of segments of text; none for that of the training and, for a task, up to 64 times it.
        examples: of each length, at least 1; segments of text.
        chunks: chunk sizes to read with instead of the trained one.
        harness: tasks of EleutherAI's evaluation harness to run instead (needs lm-eval).
        include: a folder with further tasks for it.
        seed: of the examples.
        precision: of the matrix products but those of the head; none for that of the training.
        device: none for a GPU if there is one.
        out: a JSON file to write the rows to.
    """

    run: Annotated[Path, tyro.conf.Positional]
    task: str | None = None
    data: str | None = None
    lengths: tuple[int, ...] = ()
    examples: int = 200
    chunks: tuple[int, ...] = ()
    harness: tuple[str, ...] = ()
    include: Path | None = None
    seed: int = 0
    precision: Literal["float32", "bfloat16"] | None = None
    device: str | None = None
    out: Path | None = None


Row = dict[str, float | int | str]


def main(arguments: Sequence[str]) -> int:
    """Prints a row for every length and chunk size."""
    args = parse(Eval, arguments, "eval")
    try:
        _check(args)
        rows = measured(args)
    except ValueError as error:
        print(f"miras eval: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1))
    return 0


def _check(args: Eval) -> None:
    """What would only be found after the model is read, or after it is measured."""
    for name, values in (("--lengths", args.lengths), ("--chunks", args.chunks), ("--examples", (args.examples,))):
        if wrong := [value for value in values if value < 1]:
            raise ValueError(f"{name} must be at least 1, got {wrong[0]}")
    if args.device is not None:
        check_device(args.device, "--device")
    if args.out is not None:
        check_folder(args.out)


def measured(args: Eval) -> list[Row]:
    """The rows."""
    model, checkpoint = pretrained(args.run)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = Config.read(checkpoint / "run.json")
    with computed(args.precision or config.precision, config.model.memory, device):
        return _rows(model.to(device), config, args)


def _rows(model: TitansLM, config: Config, args: Eval) -> list[Row]:
    if args.harness:
        results = harness(model, tokenizer(config.data.tokenizer), args.harness, args.include)
        return [{"task": name, **_plain(row)} for name, row in results.items()]
    asked = _task(args, config.data)

    def measure(model: TitansLM) -> list[Row]:
        return _right(model, asked, args) if asked is not None else _bits(model, config.data, args)

    if not args.chunks:
        return measure(model)
    return [{"chunk": size, **row} for size, rows in by_chunk(model, args.chunks, measure).items() for row in rows]


def _plain(row: dict[str, Any]) -> Row:
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "alias"}


def _task(args: Eval, data: Data) -> Task | None:
    if args.task is not None:
        return named(f"task:{args.task}")
    return named(data.source, length=data.length) if data.source.startswith("task:") and not args.data else None


def _right(model: TitansLM, asked: Task, args: Eval) -> list[Row]:
    have = model.config.vocabulary
    if asked.vocabulary > have:
        fewer = json.dumps({"name": asked.name, "tokens": have // 2})
        fewer = f": pass fewer, as in --task '{fewer}'" if hasattr(asked, "tokens") else ""
        raise ValueError(f"task {asked.name!r} has {asked.vocabulary} tokens, the model {have}{fewer}")
    lengths = args.lengths or growing(asked.length)
    found = accuracy(model, asked, lengths, examples=args.examples, seed=args.seed)
    rows: list[Row] = []
    for row in found:
        value, low, high = row.interval
        rows.append(
            {"length": row.length, "accuracy": value, "low": low, "high": high, "chance": row.chance, "of": row.total}
        )
    return rows


def _bits(model: TitansLM, data: Data, args: Eval) -> list[Row]:
    part = shards(dataclasses.replace(data, valid=args.data or data.valid), "valid")
    text = torch.from_numpy(part.read(0, len(part)))
    rows: list[Row] = []
    for length in args.lengths or (data.length,):
        found = likelihood(model, text, length=length, segments=args.examples, bytes_per_token=part.bytes_per_token)
        value, low, high = found.bits_per_byte
        loss = value * part.bytes_per_token * math.log(2)
        rows.append(
            {"length": length, "bits_per_byte": value, "low": low, "high": high, "loss": loss, "of": len(found.nats)}
        )
    return rows

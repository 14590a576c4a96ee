"""Small training runs, in this process and in others, for the tests of the trainer."""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import random
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from titans.train import Config, Data, Model, Optimizer, Records, Schedule, System, records, train

WORDS = (
    "memory learns while it reads",
    "the gradient of its loss is what surprises it",
    "decay is how it forgets",
    "a chunk shares one anchor",
    "keys are where and values what",
)

processes = mp.get_context("forkserver")
processes.set_forkserver_preload(["titans.train.trainer"])  # pay for the imports once


def text(folder: Path, documents: int = 40, words: int = 15) -> str:
    """A text file with that many documents, NUL between them."""
    rows = [" ".join(WORDS[(i * i + 3 * n * i + n) % len(WORDS)] for i in range(words + n)) for n in range(documents)]
    path = folder / "text.txt"
    path.write_bytes("\0".join(rows).encode())
    return str(path)


def tiny(
    folder: Path, name: str = "run", *, steps: int = 12, order: Any = "shuffled", batch: int = 4, **fields: Any
) -> Config:
    """A run of milliseconds a step."""
    source = folder / "text.txt"
    data = Data(
        source=str(source) if source.exists() else text(folder),
        cache=str(folder / "cache"),
        order=order,
        length=16,
        batch=batch,
    )
    usual: dict[str, Any] = {
        "model": Model(kind=("mag",), dim=16, depth=2, heads=2, fields={"window": 8, "persistent": 2}),
        "optimizer": Optimizer(lr=1e-2),
        "schedule": Schedule(warmup=2),
        "records": Records(log_every=1, save_every=4, keep=10, judge_batches=2, quiet=True),
    }
    return Config(folder=str(folder / name), steps=steps, data=data, **usual | fields)


def losses(config: Config) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in records.read(Path(config.folder)) if "loss" in row]


def weights(config: Config) -> bytes:
    """The file of the final weights."""
    return (Path(config.folder) / "checkpoints" / f"step-{config.steps:08d}" / "model.safetensors").read_bytes()


def begin(config: Config) -> Any:
    """The same run in another process."""
    process = processes.Process(target=_command, args=(config.to_dict(),))
    process.start()
    return process


def together(configs: Sequence[Config]) -> None:
    """Runs one after another on two processes."""
    ports = [_port() for _ in configs]
    ranks = [processes.Process(target=_rank, args=(r, ports, [c.to_dict() for c in configs])) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(180)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def ddp(config: Config) -> Config:
    """The run with copies instead of shards."""
    return replace(config, system=System(parallel="ddp"))


def _command(config: dict[str, Any]) -> None:
    from titans.cli import main

    path = Path(config["folder"]).with_suffix(".json")
    path.write_text(json.dumps(config))
    sys.exit(main(["train", "--config", str(path)]))


def _port() -> int:
    """A free port below those that the system hands to whoever connects, as other tests do at the same time."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port


def _rank(rank: int, ports: list[int], configs: list[dict[str, Any]]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for port, config in zip(ports, configs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(Config.from_dict(config))

"""Trains and judges one model; or several side by side, one process a core and one thread each."""

from __future__ import annotations

import math
import multiprocessing as mp
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import _text
import torch
from _model import ByteModel, Config, bits, save, state_bytes
from torch import Tensor, nn

Report = Callable[[str, int, float, float], None]
"""Called with a model's name, the steps done, the loss in bits per byte, and bytes read per second."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every model is trained and judged."""

    steps: int = 400
    batch: int = 4
    length: int = 256
    lr: float = 1e-2
    weight_decay: float = 0.05
    seed: int = 0
    judged: int = 128
    text: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained model: bits per byte at every step, and of every held-out segment."""

    name: str
    parameters: int
    path: str
    state_bytes: int
    bytes_per_second: float
    curve: list[float]
    held_out: list[float]


def train(name: str, model: ByteModel, data: Tensor, settings: Settings, report: Report) -> tuple[list[float], float]:
    """The loss at every step and the speed; AdamW, warm-up, cosine, clipped gradients."""
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, settings.steps))
    curve, speed, started = [], 0.0, time.perf_counter()
    rows = _text.batches(data, settings.steps, settings.batch, settings.length, settings.seed)
    for step, row in enumerate(rows, 1):
        loss = bits(model, row).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
        speed = step * settings.batch * settings.length / (time.perf_counter() - started)
        report(name, step, curve[-1], speed)
    return curve, speed


def _factor(step: int, steps: int) -> float:
    """Of the learning rate: up in 20 steps, then half a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 20) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


@torch.no_grad()
def judge(model: ByteModel, data: Tensor, settings: Settings) -> list[float]:
    """Bits per byte of segments spread over the held-out text, each read from a fresh memory."""
    rows = _text.segments(data, settings.judged, settings.length)
    return torch.cat([bits(model, part).mean(1) for part in rows.split(16)]).tolist()


def run(name: str, config: Config, settings: Settings, folder: Path, report: Report) -> Result:
    """Trains a model, judges it, and saves it in ``folder / name``."""
    text = _text.load(settings.text)
    torch.manual_seed(settings.seed)
    model = ByteModel(config)
    curve, speed = train(name, model, text.train, settings, report)
    held_out = judge(model, text.held_out, settings)
    save(model, folder / name)
    with torch.no_grad():
        _, states = model.step(torch.zeros(1, dtype=torch.long))
    return Result(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        path="none" if model.memory is None else model.memory.explain().plan.path,
        state_bytes=state_bytes(states),
        bytes_per_second=speed,
        curve=curve,
        held_out=held_out,
    )


def run_all(configs: Mapping[str, Config], settings: Settings, folder: Path, report: Report) -> dict[str, Result]:
    """`run` for every model. Tensors this small gain nothing from threads; models side by side do."""
    context = mp.get_context("spawn")
    events: Queue = context.Queue()
    workers = min(torch.get_num_threads(), len(configs))
    with ProcessPoolExecutor(workers, context, _initialise, (events,)) as pool:
        futures = [pool.submit(_work, name, config, settings, folder) for name, config in configs.items()]
        waiting = set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            while not events.empty():
                report(*events.get())
        return {name: future.result() for name, future in zip(configs, futures, strict=True)}


def _initialise(events: Queue) -> None:
    global _events  # a queue can be handed to a process only when it starts, not with its work
    _events = events
    torch.set_num_threads(1)


def _work(name: str, config: Config, settings: Settings, folder: Path) -> Result:
    return run(name, config, settings, folder, lambda *event: _events.put(event))

"""What a run says and writes while it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from titans.train.checkpoint import publish
from titans.train.config import Config

METRICS = "metrics.jsonl"
"""One JSON object a line: ``step`` and what was measured there."""

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of a device, by a part of its name; vendors' data sheets."""


def bits_per_byte(nats: float, bytes_per_token: float | None) -> float | None:
    """A loss per token as bits per byte of text; None for what is not text."""
    return nats / math.log(2) / bytes_per_token if bytes_per_token else None


def peak(device: torch.device) -> float | None:
    """FLOP/s a device can reach, None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK.items() if part in name), None)


def memory(device: torch.device) -> float:
    """Largest memory used so far in MiB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; one that a crash cut off is left out."""
    path = run / METRICS
    if not path.exists():
        raise ValueError(f"{run} is no run: it has no {METRICS}")
    return [row for line in path.read_text().splitlines() if (row := _parsed(line)) is not None]


class Recorder:
    """Metrics to a file, to the terminal, and to TensorBoard or Weights & Biases where asked for.

    Args:
        config: of the run.
        start: the step the run begins at; lines of later steps, which a crash left over, are dropped.
        active: whether this process writes; the others do nothing.
        flops: of a token, forward and backward.
        peak: FLOP/s of all devices together, None if unknown.
    """

    def __init__(self, config: Config, start: int, active: bool, flops: float = 0.0, peak: float | None = None):
        self.active, self.flops, self.peak = active, flops, peak
        self.since = time.perf_counter()
        self.sinks: list[tuple[Callable[[int, dict[str, Any]], Any], Callable[[], Any]]] = []  # to write, to close
        if not active:
            return
        run = Path(config.folder)
        path = run / METRICS
        kept = [row for row in read(run) if row["step"] <= start] if path.exists() else []
        publish(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self.file = path.open("a")
        if config.records.tensorboard:
            self.sinks.append(_tensorboard(run, start))
        if config.records.wandb:
            self.sinks.append(_wandb(config))
        self.progress = None if config.records.quiet else _progress(config.steps, start)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self.active and self.progress is not None:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.active:
            print(text, flush=True)

    def write(self, step: int, values: dict[str, float | None], tokens: int = 0) -> None:
        """Records a step, and the speed if ``tokens`` were read since it was last recorded."""
        if not self.active:
            return
        row: dict[str, Any] = {"step": step} | {name: value for name, value in values.items() if value is not None}
        if tokens:
            now = time.perf_counter()
            row["tokens_per_second"] = tokens / (now - self.since)
            self.since = now
            if self.flops and self.peak:
                row["mfu"] = self.flops * row["tokens_per_second"] / self.peak
        try:
            self.file.write(f"{json.dumps(row)}\n")
            self.file.flush()
        except OSError as error:  # the disk is full; training does not depend on it
            self.say(f"warning: metrics of step {step} could not be written: {error}")
        for sink, _ in self.sinks:
            sink(step, row)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step, text=_line(row))
            if not self.progress.console.is_terminal:
                self.say(f"{step:>8}  {_line(row)}")

    def close(self) -> None:
        """Ends the display, the file, and what it is sent to, where rows may still wait to be written."""
        if self.active:
            self.file.close()
            for _, end in self.sinks:
                end()
            if self.progress is not None:
                self.progress.stop()


_SHOWN = {
    "loss": "loss {:.4f}",
    "bits_per_byte": "{:.3f} bits/byte",
    "valid_loss": "valid loss {:.4f}",
    "valid_bits_per_byte": "{:.3f} bits/byte",
    "tokens_per_second": "{:,.0f} tokens/s",
    "memory_mib": "{:,.0f} MiB",
    "mfu": "MFU {:.1%}",
}


def _line(row: dict[str, Any]) -> str:
    return "  ".join(form.format(row[name]) for name, form in _SHOWN.items() if name in row)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _progress(steps: int, start: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    progress.add_task("", total=steps, completed=start, text="")
    if progress.console.is_terminal:
        progress.start()
    return progress


def _tensorboard(run: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("records.tensorboard needs the package tensorboard; pip install tensorboard") from None
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def sink(step: int, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, step)

    return sink, writer.close


def _wandb(config: Config) -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError("records.wandb needs the package wandb; pip install wandb") from None
    run = wandb.init(project=config.records.wandb, name=config.folder, config=config.to_dict(), resume="allow")
    return lambda step, row: run.log(row, step=step), run.finish

"""The loop: batches, gradients, steps, and nothing lost on the way.

The same program runs alone, under ``torchrun`` with sharded parameters (FSDP2) or with copies (DDP), on CPUs and GPUs.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from titans.cache import ModelCache
from titans.data import IGNORED, Batch, ahead, inputs, labels, take
from titans.model import TitansLM
from titans.train import records, resume, state
from titans.train.checkpoint import CheckpointError, publish, save
from titans.train.config import Config
from titans.train.optimizers import optimizers
from titans.train.parallel import World, whole, world
from titans.train.passes import Inputs, Objective, Recorded, products, replayed
from titans.train.signals import requests
from titans.train.sources import sources

Caches = list[ModelCache]
"""What the rows of every micro-batch remember."""


class Diverged(RuntimeError):
    """The loss or its gradient is not finite; the message says where, and where everything was written down."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps done.
        loss: of the last step, in nats a token; None if there was none.
        valid_loss: of the held-out part; None without one.
        stopped: the signal that ended the run early, None if it is complete.
    """

    step: int
    loss: float | None
    valid_loss: float | None
    stopped: signal.Signals | None


def train(config: Config, model: nn.Module | None = None) -> Outcome:
    """Trains what a config describes, from its last checkpoint if the run has one.

    Args:
        config: the run.
        model: a model to train instead of the one the config describes; like `titans.TitansLM`, it has ``layers``,
            ``hidden`` and ``loss``.

    Raises:
        Diverged: if the loss or its gradient is not finite.
        CheckpointError: if the last checkpoint cannot be written.
        ValueError: if the run exists with another config or has done more steps, or if its memory could not be told from
            a checkpoint.

    Example:
        >>> from tempfile import mkdtemp
        >>> from titans.train import Config, Data, Model, Records, train
        >>> tiny = Model(kind=("memory",), dim=8, depth=1, heads=1)
        >>> data = Data(length=8, batch=2)
        >>> train(Config(folder=mkdtemp(), steps=2, model=tiny, data=data, records=Records(quiet=True))).step
        2
    """
    with world(config.system) as ranks, products(config.precision, config.model.memory):
        return Trainer(config, ranks, model).run()


class Trainer:
    """A run on one rank."""

    def __init__(self, config: Config, ranks: World, model: Any = None):
        self.config, self.ranks, self.folder = config, ranks, Path(config.folder)
        rows = _share(config.data.batch, ranks)
        micro = config.system.micro_batch or len(rows)
        self.parts = [range(start, min(start + micro, rows.stop)) for start in rows[::micro]]
        self.source, self.valid = sources(config.data, ranks)
        torch.manual_seed(config.seed)
        self.model: Any = (model or TitansLM(config.model.build(self.source.vocabulary))).to(ranks.device)
        resume.check_names(self.model.config if isinstance(self.model, TitansLM) else config.model)
        self.model.checkpointing = config.system.checkpointing
        if config.system.compile:
            for layer in self.model.layers:
                layer.compile()
        graph = replayed(config, ranks)
        self.objective = ranks.wrap(Objective(self.model), self.model.layers, graph)
        self.recorded = Recorded(self.objective, self._precision) if graph else None
        self.shelf = resume.shelf(config)
        self.optimizers = optimizers(self.model, config.optimizer, ranks.is_sharded)
        self.step, self.saved, self.caches = 0, -1, None
        self.data = hashlib.sha256(self.source.batch(0)["tokens"].numpy().tobytes()).hexdigest()
        self._resume()
        flops = 6 * sum(p.numel() for p in self.model.parameters())  # per token, without the inner updates
        peak = records.peak(ranks.device)
        self.record = records.Recorder(config, self.step, ranks.is_first, flops, peak and peak * ranks.size)
        if ranks.is_first:
            publish(self.folder / "config.json", json.dumps(config.to_dict(), indent=1))
        self.judged = self._judged()

    # the loop ------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Trains until the last step, or until a signal asks to stop."""
        loss = valid = None
        logged, records_ = self.step, self.config.records
        try:
            with requests() as received, ahead(self.source, self.step, self.config.steps) as batches:
                for batch in batches:
                    loss, norm, stop = self._update(batch, bool(received))
                    if self.step % records_.log_every == 0 or self.step == self.config.steps or stop:
                        self._log(loss, norm, (self.step - logged) * batch["tokens"][:, 1:].numel())
                        logged = self.step
                    if records_.judge_every and self.step % records_.judge_every == 0:
                        valid = self.judge()
                    if stop:
                        self.save(last=True)
                        return Outcome(self.step, loss, valid, received[0] if received else signal.SIGTERM)
                    if self.step % records_.save_every == 0 and self.step < self.config.steps:
                        self.save()
            self.save(last=True)  # before anything else can fail
            return Outcome(self.step, loss, self.judge(), None)
        finally:
            self.record.close()

    def _update(self, batch: Batch, stopping: bool) -> tuple[float, float, bool]:
        """One step of the optimizer: the mean loss, the norm of its gradient, and whether a rank is to stop."""
        local, after = self._pass(batch, self.caches)
        total = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        loss, stop = self.ranks.sum(local, float(stopping))
        norm = whole(total).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(batch, loss, norm)
        self.caches = after
        if self.config.optimizer.clip is not None:  # only now: clipping by a norm that is NaN makes all gradients so
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.optimizer.clip, total)
        factor = self.config.schedule.factor(self.step, self.config.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=self.recorded is None)
        self.step += 1
        return loss, norm, stop > 0

    def _pass(self, batch: Batch, carried: Caches | None, backward: bool = True) -> tuple[float, Caches | None]:
        """This rank's part of the mean loss, and the memories to carry on; its gradients are accumulated."""
        total = int((labels(batch) != IGNORED).sum())
        before = carried if batch.get("continues") else None
        after: Caches = []
        losses: list[Tensor] = []
        for number, rows in enumerate(self.parts):
            tokens, mask, target = self._moved(inputs(take(batch, rows)))
            if self.recorded and backward and mask is None:
                losses.append(self.recorded(tokens, target, self.ranks.size / max(1, total)) / self.ranks.size)
                continue
            cache = before[number] if before else None
            with self.ranks.accumulating(self.objective, number == len(self.parts) - 1), self._precision():
                loss, cache = self.objective(tokens, mask, target, cache)
                loss = loss / max(1, total)
            if backward:
                (loss * self.ranks.size).backward()  # what averages gradients divides by the number of ranks
            losses.append(loss.detach())
            after.append(cache)
        if self.recorded and backward:
            self.ranks.average(self.objective)
        return float(torch.stack(losses).sum()), after if "continues" in batch else None

    @torch.no_grad()
    def judge(self) -> float | None:
        """The loss on the held-out part; of one step it is measured once."""
        if self.valid is None:
            return None
        if self.judged[0] == self.step:
            return self.judged[1]
        batches = [self.valid.batch(n) for n in range(self.config.records.judge_batches)]
        counts = [int((labels(batch) != IGNORED).sum()) for batch in batches]
        local, caches = 0.0, None
        for batch, count in zip(batches, counts, strict=True):
            mean, caches = self._pass(batch, caches, backward=False)
            local += mean * count
        loss = self.ranks.sum(local)[0] / sum(counts)
        bits = records.bits_per_byte(loss, self.valid.bytes_per_token)
        self.record.write(self.step, {"valid_loss": loss, "valid_bits_per_byte": bits})
        self.judged = self.step, loss
        return loss

    def _moved(self, x: Inputs) -> Inputs:
        device = self.ranks.device
        return x[0].to(device), None if x[1] is None else x[1].to(device), x[2].to(device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _log(self, loss: float, norm: float, tokens: int) -> None:
        device = self.ranks.device
        values = {
            "loss": loss,
            "bits_per_byte": records.bits_per_byte(loss, self.source.bytes_per_token),
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": norm,
            "memory_mib": records.memory(device),
        }
        self.record.write(self.step, values, tokens)

    # nothing is lost -----------------------------------------------------------------------------

    def save(self, last: bool = False) -> None:
        """Writes a checkpoint; one that fails is reported, and the run goes on unless it was the last."""
        if self.saved == self.step:
            return
        tree, written = self._state(), 0.0
        if self.ranks.is_first:
            try:
                self.shelf.put(self.step, tree, self._texts())
                written = 1.0
            except CheckpointError as error:
                if last:
                    raise
                self.record.say(f"warning: {error}; the run goes on, its last checkpoint is of step {self.saved}")
        if self.ranks.sum(written) == [1.0]:
            self.saved = self.step

    def _judged(self) -> tuple[int, float]:
        """The last judgement on record if it is of the step that the run goes on from, and of which step it is."""
        rows = records.read(self.folder) if self.ranks.is_first else []
        found = [row["valid_loss"] for row in rows if row["step"] == self.step and "valid_loss" in row]
        known, loss = self.ranks.sum(float(bool(found)), found[-1] if found else 0.0)
        return self.step if known else -1, loss

    def _state(self) -> dict[str, Any]:
        tree = state.capture(self.ranks, self.model, self.optimizers, self.caches)
        return tree | {"step": self.step, "data": self.data}

    def _resume(self) -> None:
        tree = resume.last(self.config, self.shelf, self.data, print if self.ranks.is_first else lambda text: None)
        if tree is None:
            return
        state.restore(self.ranks, self.model, self.optimizers, tree)
        self.caches = state.caches(self.ranks, tree, self.parts)
        self.step = self.saved = tree["step"]

    def _diverged(self, batch: Batch, loss: float, norm: float) -> Diverged:
        """Writes down the step that failed: the state before it and its batch, in the form of a checkpoint."""
        faulty = [n for n, p in self.model.named_parameters() if p.grad is not None and not _finite(whole(p.grad))]
        rows = batch["ids"].tolist() if "ids" in batch else []
        folder = self.folder / f"failure-step-{self.step:08d}"
        tree = self._state() | {"batch": dict(batch), "loss": loss, "gradient_norm": norm, "faulty": faulty}
        written = f"The state before the step and its batch are in {folder}"
        if self.ranks.is_first:
            try:
                save(folder, tree, self._texts())
            except CheckpointError as error:  # which must not hide what went wrong first
                written = f"The state before the step is lost: {error}"
        return Diverged(
            f"step {self.step}: the loss is {loss} and the norm of its gradient {norm}; rows {rows}; "
            f"{len(faulty)} gradients are not finite{', such as ' + faulty[0] if faulty else ''}. {written}"
        )

    def _texts(self) -> dict[str, str]:
        """Files that go with the tensors: enough to build the model without this run."""
        texts = {"run.json": json.dumps(self.config.to_dict(), indent=1)}
        if isinstance(self.model, TitansLM):
            texts["config.json"] = json.dumps(self.model.config.to_dict(), indent=1)
        return texts


def _share(batch: int, ranks: World) -> range:
    """The rows of a rank."""
    if batch % ranks.size:
        raise ValueError(f"{ranks.size} processes cannot share {batch} rows equally; change --data.batch")
    rows = batch // ranks.size
    return range(ranks.rank * rows, (ranks.rank + 1) * rows)


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())

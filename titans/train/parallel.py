"""One process or many: the same program, whatever started it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from titans.train.config import System


@dataclass(frozen=True)
class World:
    """The processes of a run. Every rank holds a part of the rows; ``torchrun`` says how many ranks there are."""

    rank: int
    size: int
    device: torch.device
    parallel: str

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are split among the ranks."""
        return self.size > 1 and self.parallel == "fsdp"

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module, layers: nn.ModuleList, recorded: bool = False) -> nn.Module:
        """The module with gradients that are averaged over all ranks, in the forward pass that is its own.

        A pass that is ``recorded`` does not talk to others: `average` does so after it.
        """
        if self.size == 1 or recorded:
            return module
        if not self.is_sharded:
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(module, [self.device] if self.device.type == "cuda" else None)
        from torch.distributed.fsdp import fully_shard

        # States that layers return may be views; nothing here writes into them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        for layer in layers:
            fully_shard(layer)
        return cast(nn.Module, fully_shard(module))

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Generator[None]:
        """Around a micro-batch: gradients are averaged over the ranks only after the last one."""
        if self.is_sharded:
            cast(Any, module).set_requires_gradient_sync(last)
        # only copies that are wrapped have something to put off
        with nullcontext() if last else getattr(module, "no_sync", nullcontext)():
            yield

    def average(self, module: nn.Module) -> None:
        """Gradients become their mean over the ranks."""
        if self.size > 1:
            mean, grads = torch.distributed.ReduceOp.AVG, [p.grad for p in module.parameters() if p.grad is not None]
            for work in [torch.distributed.all_reduce(g, mean, async_op=True) for g in grads]:
                cast(Any, work).wait()

    def sum(self, *numbers: float) -> list[float]:
        """Numbers summed over the ranks."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def joined(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of all ranks one after another, for tensors whose first dimension is rows."""
        if self.size == 1:
            return tensors
        joined: dict[str, Tensor] = {}
        for name, x in tensors.items():
            x = x.to(self.device).contiguous()
            parts = [torch.empty_like(x) for _ in range(self.size)]
            torch.distributed.all_gather(parts, x)
            joined[name] = torch.cat(parts).cpu()
        return joined


@contextmanager
def world(system: System) -> Generator[World]:
    """The processes that ``torchrun`` started, or this one alone."""
    kind, _, number = (system.device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"system.device must be cpu, cuda or cuda:N, got {kind!r}")
    check_device(system.device or kind, "system.device")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    number = number or os.environ.get("LOCAL_RANK", "0")
    device = torch.device(kind, int(number)) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device, system.parallel)
        return
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield World(torch.distributed.get_rank(), size, device, system.parallel)
    finally:
        torch.distributed.destroy_process_group()


def check_device(name: str, what: str) -> None:
    """Raises a ValueError if a device is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{what} must be cpu, cuda or cuda:N, got {name!r}") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"{what} is {name!r}, but PyTorch finds {count or 'no'} GPUs here; pass another, or cpu")


def whole(x: Tensor) -> Tensor:
    """A tensor as one; for shards every rank has to ask."""
    return cast(Any, x).full_tensor() if hasattr(x, "full_tensor") else x


def like(x: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor placed and sharded as another one of its shape."""
    x = x.to(reference.device)
    if not hasattr(reference, "placements"):
        return x
    from torch.distributed.tensor import distribute_tensor

    shards = cast(Any, reference)  # every rank has the whole tensor: nothing has to be sent
    return distribute_tensor(x, shards.device_mesh, shards.placements, src_data_rank=None)

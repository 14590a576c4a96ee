"""Two processes train as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from titans import TitansConfig, TitansLM

STEPS = 20


def made() -> TitansLM:
    torch.manual_seed(0)
    memory: dict[str, Any] = {"architecture": {"name": "mlp", "expansion": 2}, "chunk_size": 4}
    config = TitansConfig.from_dict(
        {"vocabulary": 31, "dim": 16, "layers": ("mac", "hybrid"), "segment": 6, "window": 5, "memory": memory}
    )
    return TitansLM(config).double()


def batch(step: int) -> Tensor:
    return torch.randint(31, (4, 13), generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, rows: slice) -> list[float]:
    """Losses of the whole batch, each process reading its rows; SGD, so that gradients must agree in size too."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.02), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step % 2)[rows], return_loss=True)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        losses.append(mean.item())
    return losses


def ddp(model: TitansLM) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp2(model: TitansLM) -> nn.Module:
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def worker(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    losses = [train(wrap(made()), rows) for wrap in (ddp, fsdp2)]
    if rank == 0:
        torch.save(losses, folder / "losses")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    spawn(worker, (tmp_path,), nprocs=2)
    alone = train(made(), slice(0, 4))
    assert alone[-2] < alone[0]  # the same batch
    for losses in torch.load(tmp_path / "losses"):
        torch.testing.assert_close(losses, alone, rtol=0, atol=1e-6)

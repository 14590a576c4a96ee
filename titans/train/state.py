"""All that the next step depends on, as a tree that any number of processes can save and restore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from titans.cache import ModelCache
from titans.train.checkpoint import mapped
from titans.train.optimizers import names
from titans.train.parallel import World, like, whole


def capture(ranks: World, model: nn.Module, moved: Sequence[Optimizer], caches: Sequence[ModelCache] | None) -> Any:
    """Parameters, optimizers, random numbers and carried memories, gathered on the first rank; all ranks have to call."""

    def gathered(x: Tensor) -> Tensor | None:
        x = whole(x.detach())
        return x.cpu() if ranks.is_first else None

    rng = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state()
    joined: dict[str, Tensor] | None = None
    if caches is not None:
        flat = [cache.tensors() for cache in caches]
        joined = ranks.joined({name: torch.cat([f[name] for f in flat]) for name in flat[0]})
    return {
        "model": {name: gathered(x) for name, x in model.state_dict().items()},
        "optimizers": [
            {
                "state": {name: mapped(dict(o.state[p]), gathered) for name, p in names(o, model)},
                "groups": [{k: v for k, v in group.items() if k != "params"} for group in o.param_groups],
            }
            for o in moved
        ],
        "rng": rng,
        "caches": joined,
    }


def restore(ranks: World, model: nn.Module, moved: Sequence[Optimizer], tree: Any) -> None:
    """What `capture` took, on whatever ranks there are now."""
    with torch.no_grad():
        for name, x in model.state_dict().items():
            x.copy_(like(tree["model"][name], x))
    for optimizer, saved in zip(moved, tree["optimizers"], strict=True):
        for name, p in names(optimizer, model):
            optimizer.state[p] = {k: _placed(k, v, p) for k, v in saved["state"][name].items()}
        for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
            group.update(values)
    torch.set_rng_state(tree["rng"]["cpu"])
    if "cuda" in tree["rng"] and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(tree["rng"]["cuda"])


def caches(ranks: World, tree: Any, parts: Sequence[range]) -> list[ModelCache] | None:
    """The carried memories of some rows of all, for every micro-batch."""
    if tree["caches"] is None:
        return None
    flat = [{name: x[part.start : part.stop] for name, x in tree["caches"].items()} for part in parts]
    return [ModelCache.from_tensors(f).to(ranks.device) for f in flat]


def _placed(key: str, value: Any, p: Tensor) -> Any:
    """A value of an optimizer's state, its tensors where the optimizer keeps them: counters stay on the CPU."""

    def place(x: Tensor) -> Tensor:
        if x.shape == p.shape:
            return like(x, p)
        return x if key == "step" else x.to(p.device)

    return mapped(value, place)

"""One pass through a model, forward and backward: as it is, or recorded once and replayed with no Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miras import MirasSpec
from titans.cache import ModelCache
from titans.data import IGNORED
from titans.train.config import Config
from titans.train.parallel import World

Inputs = tuple[Tensor, Tensor | None, Tensor]
"""Tokens, their mask, and what follows them."""


@contextmanager
def products(precision: str, memory: MirasSpec) -> Generator[None]:
    """What autocast leaves in float32, memories without a kernel above all, is multiplied in TF32 where others round to bfloat16.

    Not if weights are read through a link: those of a simplex differ by less than TF32 tells apart, and a norm blows that up.
    """
    before = torch.get_float32_matmul_precision()
    narrow = precision == "bfloat16" and memory.retention.link_is_identity
    torch.set_float32_matmul_precision("high" if narrow else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def computed(precision: str, memory: MirasSpec, device: torch.device | str) -> Generator[None]:
    """Inside, a model computes as it does while it is trained in that precision, so by the same kernels."""
    narrow = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
    with products(precision, memory), narrow:
        yield


class Objective(nn.Module):
    """A model and its loss as one forward pass, which is what DDP and FSDP2 wrap."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, mask: Tensor | None, target: Tensor, cache: ModelCache | None
    ) -> tuple[Tensor, ModelCache]:
        """The summed loss of tokens ``[B, T]``, and what the model remembers of them, cut from the graph."""
        hidden, after = self.model.hidden(tokens, cache, mask=mask)
        loss = self.model.loss(hidden, target)
        return loss * (target != IGNORED).sum().clamp_min(1), after.detach()


def replayed(config: Config, ranks: World) -> bool:
    """Whether passes are recorded.

    Raises:
        ValueError: if they are to be and cannot.
    """
    if not config.system.graph:
        return False
    if ranks.device.type != "cuda":
        raise ValueError(f"system.graph records what a GPU does, and the device is {ranks.device.type!r}")
    if ranks.is_sharded:
        raise ValueError("system.graph takes whole weights on every GPU: pass --system.parallel ddp")
    if config.data.order == "stream":
        raise ValueError("system.graph cannot carry memories from batch to batch: pass --data.order shuffled")
    return True


class Recorded:
    """Passes of an objective as CUDA graphs, one for each shape of a batch.

    What Python decides is decided while recording, so nothing is carried from one batch to the next, and no row is padded.
    Gradients are added to those of before, at the same addresses: zero them, do not drop them.

    Args:
        objective: on a GPU, not wrapped by what talks to other processes.
        precision: makes the context of a forward pass.
    """

    def __init__(self, objective: nn.Module, precision: Callable[[], AbstractContextManager[Any]]):
        self.objective, self.precision = objective, precision
        self.graphs: dict[torch.Size, _Graph] = {}

    def __call__(self, tokens: Tensor, target: Tensor, share: float) -> Tensor:
        """The summed loss of tokens ``[B, T]`` times ``share``; its gradient has been added to the parameters'."""
        if tokens.shape not in self.graphs:
            self.graphs[tokens.shape] = self._record(tokens, target)
        found = self.graphs[tokens.shape]
        found.tokens.copy_(tokens)
        found.target.copy_(target)
        found.share.fill_(share)
        found.graph.replay()
        return found.loss.clone()  # the next replay writes into it

    def _record(self, tokens: Tensor, target: Tensor) -> _Graph:
        """Runs a pass as it is first: kernels are compiled and tried then, and gradients come into being."""
        weights = [p for p in self.objective.parameters() if p.requires_grad]
        before = [None if p.grad is None else p.grad.clone() for p in weights]
        held = tokens.clone(), target.clone(), torch.ones((), device=tokens.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._pass(*held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._pass(*held)
        for weight, grad in zip(weights, before, strict=True):
            if weight.grad is not None:
                weight.grad.zero_() if grad is None else weight.grad.copy_(grad)
        return _Graph(graph, *held, loss)

    def _pass(self, tokens: Tensor, target: Tensor, share: Tensor) -> Tensor:
        with self.precision():
            loss = self.objective(tokens, None, target, None)[0] * share
        loss.backward()
        return loss.detach()


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    target: Tensor
    share: Tensor
    loss: Tensor

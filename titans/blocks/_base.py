"""What all mixers share: a state that is a value, and one call over tokens at known positions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from miras import MemoryState
from titans.norm import RMSNorm
from titans.place import Place

State = dict[str, Tensor | MemoryState]
"""What a mixer carries from one call to the next; every tensor has rows first."""


class Mixer(nn.Module, ABC):
    """A causal map of sequences ``[B, T, dim]``; cut anywhere, with the state passed on, it gives the same numbers."""

    @abstractmethod
    def start(self, batch: int) -> State:
        """The state before the first token of ``batch`` rows."""

    @abstractmethod
    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """``[B, T, dim]`` and the state after the last token that counts."""

    def begin(self, x: Tensor, place: Place) -> tuple[Tensor, State]:
        """`forward` from `start`, for mixers that can save themselves a pass."""
        return self(x, self.start(len(x)), place)


class Persistent(nn.Module):
    r"""Learned tokens that do not depend on the input, $p_1\dots p_{N_p}$ (Titans Eq. 19), as wide as normalised inputs."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        if count < 0:
            raise ValueError(f"the number of persistent tokens must be at least 0, got {count}")
        self.tokens = nn.Parameter(torch.randn(count, dim)) if count else None

    def rows(self, batch: int) -> Tensor | None:
        """``[B, P, dim]``, or None if there are none."""
        return None if self.tokens is None else self.tokens.expand(batch, -1, -1)


class Gating(nn.Module):
    r"""$y\otimes m=\mathrm N_1(y)\odot\sigma(\mathrm N_2(m))$: both normalised with learned gains, then the nonlinearity (Titans §4.2).

    The paper leaves open on which of the two $\sigma$, here the sigmoid, acts: the memory gates what attention says.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(2))

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        """Two ``[B, T, dim]`` in, one out."""
        return self.norms[0](y) * torch.sigmoid(self.norms[1](m))


def memory_of(state: State) -> MemoryState:
    """The memory in a state."""
    found = state["memory"]
    assert isinstance(found, MemoryState)
    return found


def tensors_of(state: State, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in a state whose names begin with ``prefix``, without it."""
    return {n.removeprefix(prefix): x for n, x in state.items() if isinstance(x, Tensor) and n.startswith(prefix)}

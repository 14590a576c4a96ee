"""Algorithms that know where a chunk ends: rates of readers that start anew, and one step for the whole of it.

Shapes: n tokens, K slots, ... batch and heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms, geometric, momentum_gate
from miras.algorithms._muon import NS_LACT, NS_QUINTIC, newton_schulz
from miras.engine.filters import Filter
from miras.gates import Gate


@algorithms.register("mini_batch")
@dataclass(frozen=True)
class MiniBatch(Algorithm):
    r"""Gradient descent by mini-batches, with a rate of the reader too: $A_t=A_\xi-\rho_t\sum_{\xi<i\le t}\eta_ig_i$.

    From the last chunk boundary $\xi$: token t sees all gradients of its chunk so
    far with its own factor $\rho_t$, and the last token's is what remains. With $\rho=1$ it is `gd`.
    Source: TTT (arXiv 2407.04620), official code, where $\rho$ starts as one over the position in the mini-batch.
    """

    slots: ClassVar[int] = 2  # the chunk's weighted gradients, and how much of them the memory has
    lasting: ClassVar[int] = 0  # type: ignore[assignment]

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "reader": Gate("sigmoid", init=0.9)}

    def filter(self, n: int, gates: Gates) -> Filter:
        reader = gates["reader"]
        seen = torch.ones(n, n, dtype=reader.dtype, device=reader.device).tril()
        had = torch.cat([torch.zeros_like(reader[..., :1]), reader[..., :-1]], -1)
        first = torch.zeros_like(reader)
        first[..., 0] = 1.0
        zero = torch.zeros_like(reader[..., -1])
        last = reader[..., -1]
        return Filter(
            out_in=reader[..., None] * seen - had[..., None] * seen.tril(-1),
            out_slot=torch.stack([reader - had, -first], -1),
            slot_in=torch.stack([torch.ones_like(reader), last[..., None].expand_as(reader)], -2),
            slot_slot=torch.stack([torch.stack([torch.ones_like(zero), zero], -1), torch.stack([last, zero], -1)], -2),
        )


@algorithms.register("chunk_step")
@dataclass(frozen=True)
class ChunkStep(Algorithm):
    r"""One step a chunk: $G=\sum_t\eta_tg_t$, $M\leftarrow G+\bar\mu M$, $A\leftarrow A-M$ or $A-\mathrm{NS}_5(M)$.

    $\bar\mu$ is the mean of the momentum over the chunk. Inside it the memory does not move, and a chunk that never ends
    is never written. An orthogonalised step has length one whatever the rates, which then weigh tokens only.
    Source: LaCT (arXiv 2505.23884), official code.

    Args:
        newton_schulz: ``none``, or whose coefficients orthogonalise M: ``muon`` or ``lact``.
    """

    slots: ClassVar[int] = 3  # M, G, and the chunk's momenta times M
    enters: ClassVar[tuple[int, ...] | None] = (2,)
    lasting: ClassVar[int] = 1  # type: ignore[assignment]
    newton_schulz: Literal["none", "muon", "lact"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.newton_schulz not in ("none", "muon", "lact"):
            raise ValueError(f"newton_schulz must be 'none', 'muon' or 'lact', got {self.newton_schulz!r}")

    @property
    def needs_matrices(self) -> bool:  # type: ignore[override]
        return self.newton_schulz != "none"

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return geometric(gates["log_momentum"])

    def filter(self, n: int, gates: Gates) -> Filter:
        momentum = gates["log_momentum"].exp()
        nothing = momentum.new_zeros(n, n)
        slot_in = torch.zeros_like(momentum)[..., None, :].repeat_interleave(3, -2)
        slot_in[..., 1, :] = 1.0
        one, zero, total = torch.ones_like(momentum[..., 0]), torch.zeros_like(momentum[..., 0]), momentum.sum(-1)
        rows = [[one, zero, zero], [zero, one, zero], [total, zero, one]]
        slot_slot = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return Filter(nothing, momentum.new_zeros(n, 3), slot_in, slot_slot)

    def settle(self, slots: Tensor, steps: int, dims: int) -> tuple[Tensor | None, Tensor]:
        momentum, gradient, carried = slots.unbind(2)
        momentum = gradient + carried / steps
        none = torch.zeros_like(momentum)
        update = momentum
        if self.newton_schulz != "none" and dims == 2:
            update = newton_schulz(momentum, 5, NS_LACT if self.newton_schulz == "lact" else NS_QUINTIC)
        return update, torch.stack([momentum, none, none], 2)

"""TNT: a global memory that moves seldom, and local ones that start again with every shard.

Shapes: B batch, T tokens, H heads, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec
from miras.composite import Composite
from miras.periodic import Periodic
from miras.state import Weights

PROJECTION = AssociativeMemory(
    MirasSpec.make(architecture="matrix", bias="dot", retention="none", algorithm="gd", chunk_size=64, step_bound=None)
)
"""The sum of k k / |k|^2: a Hebbian memory that answers a query with its part among the keys of the shard."""


@dataclass(frozen=True)
class Shards(Composite):
    r"""$y_t=f(V_\xi;q_t)+\sum_if(W^i_t;\Pi_tq_t)$: TNT (arXiv 2511.07343) Eq. 5-7.

    Args:
        spec: of the global memory V, which reads its anchor.
        local: chunk sizes of the local memories, each otherwise like the global one.
        period: tokens after which they return to their learned start.
    """

    main_part: ClassVar[str] = "global"
    local: tuple[int, ...] = (8, 16)
    period: int = 2048

    @property
    def cores(self) -> dict[str, AssociativeMemory]:
        """The memories that learn, by name."""
        locals_ = (replace(self.spec, chunk_size=c, anchor_lag=0, read="after") for c in self.local)
        each = {f"local_{i}": AssociativeMemory(s, self.path) for i, s in enumerate(locals_)}
        return {"global": AssociativeMemory(self.spec, self.path), **each}

    def random_memory(self, heads: int, d_key: int, d_value: int, generator: torch.Generator | None = None) -> Weights:
        each = {name: core.random_memory(heads, d_key, d_value, generator) for name, core in self.cores.items()}
        return {f"{name}.{n}": w for name, raw in each.items() for n, w in raw.items()}

    def initial_state(self, raw: Weights, batch: int, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        states: dict[str, MemoryState] = {}
        for name, core in self.cores.items():
            own = {n.removeprefix(f"{name}."): w for n, w in raw.items() if n.startswith(f"{name}.")}
            states[name] = core.initial_state(own, batch, d_key, d_value)
        like = next(iter(states["global"].memory.values()))
        nothing = {"w": like.new_zeros(batch, like.shape[1], d_key, d_key)}
        states["projection"] = PROJECTION.started(nothing, d_key, d_key)
        state = MemoryState.together(states, (0,) * batch)
        starts = {f"start.{n}": a for n, a in state.memory.items() if n.startswith("local_")}
        return state._replace(extra=state.extra | starts)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor], state: MemoryState
    ) -> tuple[Tensor, MemoryState]:
        seen, widths = state.phase[0], (q.shape[-1], v.shape[-1])
        shard = Periodic(PROJECTION, self.period)
        before = state.part("projection", PROJECTION.spec.chunk_size, self.period)
        blank = PROJECTION.started({n: torch.zeros_like(w) for n, w in before.memory.items()}, q.shape[-1], q.shape[-1])
        unit = {"lr": 1 / k.square().sum(-1).clamp_min(1e-12)}
        projected, after = shard(q, k, k, unit, before, blank, seen)
        states = {"projection": after}
        y: Tensor | float = 0.0
        for name, core in self.cores.items():
            if name == "global":
                answer, states[name] = core(q, k, v, gates, state.part(name, core.spec.chunk_size))
            else:
                start = {n: state.extra[f"start.{name}.{n}"] for n in core.shapes(*widths)}
                before = state.part(name, core.spec.chunk_size, self.period)
                local = Periodic(core, self.period)
                answer, states[name] = local(projected, k, v, gates, before, core.started(start, *widths), seen)
            y = y + answer
        cycle = math.lcm(self.period, self.spec.chunk_size)
        whole = MemoryState.together(states, ((seen + q.shape[1]) % cycle,) * state.batch)
        starts = {n: x for n, x in state.extra.items() if n.startswith("start.")}
        return y, whole._replace(extra=whole.extra | starts)  # type: ignore[return-value]


class TNT(Memory):
    """A layer of one global memory and some local ones, which share queries, keys, values and rates.

    Args:
        dim: width of the inputs and outputs.
        local: chunk sizes of the local memories.
        period: tokens of a shard; a multiple of every local chunk size.
        options: those of `Memory`; the spec is the global memory's.
    """

    def __init__(self, dim: int, *, local: tuple[int, ...] = (8, 16), period: int = 2048, **options: Any):
        if not local or any(period % c for c in local):
            raise ValueError(f"period must be a multiple of every local chunk size, got {period} and {local}")
        self.local, self.period = local, period
        super().__init__(dim, **options)

    def make_core(self, spec: MirasSpec, **how: Any) -> Shards:
        return Shards(spec, local=self.local, period=self.period, **how)

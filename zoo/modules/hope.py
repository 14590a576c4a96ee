"""Hope: memories that make their own keys, values and rates, then a stack of memories that move ever more seldom.

Shapes: B batch, T tokens, H heads, D channels; the five memories that modify themselves are 5 H heads of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec
from miras.composite import Composite
from miras.state import Weights
from miras.ties import Tie, ties

ROLES = ("memory", "key", "value", "rate", "decay")


@ties.register("own_gates")
@ties.register("own_gates")
@dataclass(frozen=True)
class OwnGates(Tie):
    """The memories answer with their rates and decays, so that nothing has to be projected to them."""

    gives: ClassVar[frozenset[str]] = frozenset({"lr", "log_decay"})


@dataclass(frozen=True)
class SelfModifying(Composite):
    r"""Self-modifying Titans and a continuum memory: Nested Learning (arXiv 2512.24695) Eq. 83-97 and 70-71.

    With $\square$ one of memory, key, value, rate and decay, and all right sides at the last chunk's end $\xi$:
    $k_t=\mathcal M_{k,\xi}(x_t)$ and so for the others, $\hat v_{\square,t}=\mathcal M_{\square,\xi}(v_t)$, each memory learns the
    pair $(k_t,\hat v_{\square,t})$, and the first answers $q_t$. Levels then map that answer, each learning, every so many
    tokens, to make $v_t$ of what it is given.

    Args:
        spec: of the five memories, which share their pairs' keys, rates and decays.
        levels: chunk sizes of the levels, in the order in which they are passed.
    """

    main_part: ClassVar[str] = "self"
    levels: tuple[int, ...] = (64, 512)

    @property
    def stack(self) -> dict[str, AssociativeMemory]:
        """The levels by name: gradient descent without decay, read before it is written."""
        plain = {"retention": "none", "algorithm": {"name": "gd", "max_lr": self.spec.algorithm.max_lr}}
        usual = self.spec.to_dict() | plain | {"read": "anchor", "anchor_lag": 0}
        specs = [MirasSpec.from_dict(usual | {"chunk_size": c}) for c in self.levels]
        return {f"level_{i}": AssociativeMemory(s, self.path) for i, s in enumerate(specs)}

    def random_memory(self, heads: int, d_key: int, d_value: int, generator: torch.Generator | None = None) -> Weights:
        cores = {"self": (self.main, len(ROLES) * heads), **{n: (c, heads) for n, c in self.stack.items()}}
        each = {n: core.random_memory(h, d_key, d_value, generator) for n, (core, h) in cores.items()}
        return {f"{part}.{n}": w for part, raw in each.items() for n, w in raw.items()}

    def initial_state(self, raw: Weights, batch: int, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        states: dict[str, MemoryState] = {}
        for part, core in {"self": self.main, **self.stack}.items():
            own = {n.removeprefix(f"{part}."): w for n, w in raw.items() if n.startswith(f"{part}.")}
            states[part] = core.initial_state(own, batch, d_key, d_value)
        return MemoryState.together(states, (0,) * batch)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor], state: MemoryState
    ) -> tuple[Tensor, MemoryState]:
        chunk, seen, length = self.spec.chunk_size, state.phase[0], q.shape[1]
        modified, answers, values, rates = state.part("self", chunk), [], [], []
        begin = 0
        while begin < length:
            end = min(begin + chunk - (seen + begin) % chunk, length)
            y, value, rate, modified = self._piece(q[:, begin:end], k[:, begin:end], v[:, begin:end], modified)
            answers.append(y)
            values.append(value)
            rates.append(rate)
            begin = end
        y, value, rate = (torch.cat(parts, 1) for parts in (answers, values, rates))
        states = {"self": modified}
        for part, core in self.stack.items():
            y, states[part] = core(y, y, value, {"lr": rate}, state.part(part, core.spec.chunk_size))
        cycle = math.lcm(chunk, *self.levels)
        return y, MemoryState.together(states, ((seen + length) % cycle,) * state.batch)

    def surprise(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor | float], state: MemoryState
    ) -> Tensor:
        raise ValueError("memories that make their own keys and values have no loss of the ones they are given")

    def _piece(
        self, q: Tensor, x_key: Tensor, x_value: Tensor, state: MemoryState
    ) -> tuple[Tensor, Tensor, Tensor, MemoryState]:
        """Tokens of one chunk: answers, values, rates ``[B, T, H]`` and the five memories afterwards."""
        frozen = AssociativeMemory(replace(self.spec, read="anchor"))
        d_value = x_value.shape[-1]
        asked = torch.cat([q, x_key, x_value, x_key, x_key], 2)
        _, key, value, rate, decay = frozen.read(state, asked, d_value).chunk(len(ROLES), 2)
        lr, log_decay = (self.spec.gates[g](x.mean(-1)) for g, x in (("lr", rate), ("log_decay", decay)))
        key = F.normalize(key, dim=-1, eps=1e-3)

        def shared(x: Tensor) -> Tensor:
            return torch.cat([x] * len(ROLES), 2)

        wanted = frozen.read(state, shared(value), d_value)
        gates = {"lr": shared(lr), "log_decay": shared(log_decay)}
        y, state = self.main(shared(q), shared(key), wanted, gates, state)
        return y[:, :, : q.shape[2]], value, lr, state


class Hope(Memory):
    """A layer of self-modifying memories and a stack of levels.

    Args:
        dim: width of the inputs and outputs.
        levels: chunk sizes of the levels.
        options: those of `Memory`; the spec is that of the self-modifying memories.
    """

    def __init__(self, dim: int, *, levels: tuple[int, ...] = (64, 512), **options: Any):
        self.levels = levels
        super().__init__(dim, **options)

    def make_core(self, spec: MirasSpec, **how: Any) -> SelfModifying:
        return SelfModifying(spec, levels=self.levels, **how)

"""Trellis: a memory that compresses keys, and one that learns values from what it makes of them.

Shapes: B batch, T tokens, H heads, D channels, M slots, of which there are as many as channels of a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec
from miras.composite import Composite
from miras.state import Weights
from miras.ties import Tie, Tokens, ties


@ties.register("coded")
@dataclass(frozen=True)
class Coded(Tie):
    """The value of the first pass, a learned map of the key, goes in front of that of the second."""

    def parameters(self, heads: int, d_key: int, d_value: int) -> dict[str, Tensor]:
        return {"code": torch.randn(heads, d_key, d_key) / d_key**0.5}

    def width(self, d_value: int) -> int:
        return 2 * d_value

    def before(self, x: Tokens, p: Mapping[str, Tensor]) -> Tokens:
        code = torch.einsum("bthi,him->bthm", x.k, p["code"].to(x.k.dtype))
        return x._replace(v=torch.cat([code.to(x.v.dtype), x.v], -1))


@dataclass(frozen=True)
class TwoPasses(Composite):
    r"""$c_t=\phi(S^k_tk_t)$ of a memory that learns $k_t\mapsto\hat k_t$, then a memory that learns $c_t\mapsto v_t$.

    The answer is $S^v_t\phi(S^k_tq_t)$, with $\phi(z)=\sqrt M\,\mathrm{SiLU}(z)/\|\mathrm{SiLU}(z)\|$. Values come as
    $[\hat k_t,v_t]$. Source: Trellis (arXiv 2512.23852), in the reading of a public implementation.
    """

    main_part: ClassVar[str] = "keys"

    def width(self, d_key: int, d_value: int) -> int:
        return d_value - d_key

    def random_memory(self, heads: int, d_key: int, d_value: int, generator: torch.Generator | None = None) -> Weights:
        widths = {"keys": (d_key, d_key), "values": (d_key, d_value - d_key)}
        each = {part: self.main.random_memory(heads, *w, generator) for part, w in widths.items()}
        return {f"{part}.{n}": w for part, raw in each.items() for n, w in raw.items()}

    def initial_state(self, raw: Weights, batch: int, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        states: dict[str, MemoryState] = {}
        for part, width in (("keys", d_key), ("values", d_value - d_key)):
            own = {n.removeprefix(f"{part}."): w for n, w in raw.items() if n.startswith(f"{part}.")}
            states[part] = self.main.initial_state(own, batch, d_key, width)
        return MemoryState.together(states, (0,) * batch)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor], state: MemoryState
    ) -> tuple[Tensor, MemoryState]:
        chunk, wanted, value = self.spec.chunk_size, v[..., : k.shape[-1]], v[..., k.shape[-1] :]
        before = state.part("keys", chunk)
        asked, keys = self.main(q, k, wanted, gates, before)
        code, _ = self.main(k, k, wanted, gates, before)
        y, values = self.main(normalised(asked), normalised(code), value, gates, state.part("values", chunk))
        return y, MemoryState.together({"keys": keys, "values": values}, keys.phase)

    def surprise(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor | float], state: MemoryState
    ) -> Tensor:
        """That of the first pass."""
        return super().surprise(q, k, v[..., : k.shape[-1]], gates, state)


def normalised(z: Tensor) -> Tensor:
    """SiLU, scaled to the length of a vector of ones."""
    return F.normalize(F.silu(z), dim=-1) * z.shape[-1] ** 0.5


class Trellis(Memory):
    """A `Memory` of two passes."""

    def make_core(self, spec: MirasSpec, **how: Any) -> AssociativeMemory:
        return TwoPasses(spec, **how)

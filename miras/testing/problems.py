"""Random problems for a spec: keys, values, gates and an initial state, all from a seed.

Shapes: B batch, T tokens, H heads, N pairs a token, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.engine.plan import Path
from miras.gates import Gate, channels
from miras.spec import MirasSpec
from miras.state import MemoryState


@dataclass(frozen=True)
class Problem:
    """One call of an `AssociativeMemory`."""

    spec: MirasSpec
    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]
    state: MemoryState
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.q.shape[1]

    def run(self, path: Path | None = None, tolerance: float | None = None) -> tuple[Tensor, MemoryState]:
        """Calls the memory."""
        memory = AssociativeMemory(self.spec, path, tolerance)
        return memory(self.q, self.k, self.v, self.gates, self.state, mask=self.mask)

    def slice(self, start: int, stop: int) -> Problem:
        """The same problem on some of its tokens."""
        return self.map(lambda x: x[:, start:stop])

    def rows(self, rows: list[int]) -> Problem:
        """The same problem on some of its rows."""
        return replace(self.map(lambda x: x[rows]), state=self.state.select(rows))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Problem:
        """``fn`` on every tensor that runs along batch and tokens."""
        gates = {g: fn(x) for g, x in self.gates.items()}
        mask = None if self.mask is None else fn(self.mask)
        return replace(self, q=fn(self.q), k=fn(self.k), v=fn(self.v), gates=gates, mask=mask)

    def leaves(self) -> tuple[Problem, dict[str, Tensor]]:
        """The problem on fresh tensors that require gradients, by name."""
        found: dict[str, Tensor] = {}

        def leaf(name: str, x: Tensor) -> Tensor:
            found[name] = x.detach().clone().requires_grad_()
            return found[name]

        flat = self.state.tensors()
        tensors = {n: x if n == "phase" else leaf(f"state/{n}", x) for n, x in flat.items()}
        state = MemoryState.from_tensors(tensors)
        gates = {g: leaf(f"gate.{g}", x) for g, x in self.gates.items()}
        q, k, v = leaf("q", self.q), leaf("k", self.k), leaf("v", self.v)
        return replace(self, q=q, k=k, v=v, gates=gates, state=state), found


def problem(
    spec: MirasSpec,
    *,
    length: int,
    d_key: int = 4,
    d_value: int = 4,
    batch: int = 2,
    heads: int = 2,
    pairs: int = 1,
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Unit keys and queries, values of ``scale``, gates over their whole range, and a warm initial state.

    The state is warm (random slots, replayed pairs, second moments) because a cold one hides what carries over.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    if spec.algorithm.steps > 1:
        pairs = spec.algorithm.steps
    n = (pairs,) if pairs > 1 else ()
    q = unit(normal(batch, length, heads, d_key))
    k = unit(normal(batch, length, heads, *n, d_key))
    v = scale * normal(batch, length, heads, *n, d_value)
    widths = channels(d_key, d_value, len(spec.architecture.shapes(d_key, d_value)))
    gates = {
        name: random_gate(
            gate, normal(batch, length, heads, *(n if name in spec.pair_gates else ()), *widths[gate.per])
        )
        for name, gate in spec.gates.items()
    }
    memory = AssociativeMemory(spec)
    raw = {w: x.double() + 0.1 * normal(*x.shape) for w, x in memory.random_memory(heads, d_key, d_value, g).items()}
    state = memory.initial_state(raw, batch, d_key, d_value, pairs)
    slots = {w: 0.1 * normal(*x.shape) for w, x in state.slots.items()}
    extra = {name: _warm(name, spec, x, normal) for name, x in state.extra.items()}
    out = Problem(spec, q, k, v, gates, state._replace(slots=slots, extra=extra))
    if dtype == torch.float64:
        return out
    wide = torch.promote_types(dtype, torch.float32)
    return replace(out.map(lambda x: x.to(dtype)), state=out.state.map(lambda x: x.to(wide)))


def random_gate(gate: Gate, logits: Tensor) -> Tensor:
    """A value the gate can take, from standard normals."""
    match gate.squash:
        case "sigmoid":
            return gate.scale * torch.sigmoid(logits)
        case "log_sigmoid":
            return torch.nn.functional.logsigmoid(logits + 1)
        case "softplus":
            return gate.init * torch.nn.functional.softplus(logits) / math.log(2)
        case "identity":
            return gate.init + logits


def unit(x: Tensor) -> Tensor:
    """Vectors of length one."""
    return x / x.norm(dim=-1, keepdim=True)


def _warm(name: str, spec: MirasSpec, x: Tensor, normal: Callable[..., Tensor]) -> Tensor:
    if name in ("P", "H"):
        root = 0.3 * normal(*x.shape)
        return x + root @ root.mT
    if name == "replay.k":
        return unit(normal(*x.shape))
    if name == "replay.v":
        return normal(*x.shape)
    if name.startswith("replay.") and name.removeprefix("replay.") in spec.gates:
        return random_gate(spec.gates[name.removeprefix("replay.")], normal(*x.shape))
    return x

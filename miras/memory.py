"""A memory as a layer: projections, a short convolution, gates and a learned start around the pure core.

Shapes: B batch, T tokens, H heads, N pairs a token, D channels of a head. Follows MIRAS §5.3 and Titans §4.4.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from miras.associative import AssociativeMemory
from miras.convolution import unit
from miras.engine.plan import Path
from miras.explain import Explanation, explain
from miras.gates import GateProjection
from miras.inputs import all_finite, checkable
from miras.kernels import around as kernels
from miras.packing import side_by_side
from miras.spec import MirasSpec, changed
from miras.state import MemoryState
from miras.surroundings import Surroundings
from miras.ties import Tokens, given, projected, through

OWN = ("heads", "head_dim", "spec", "around", "path", "tolerance")
"""What a layer is told beside the fields of its spec."""


class Memory(nn.Module):
    """A sequence layer that learns while it reads.

    Args:
        dim: width of the inputs and outputs.
        heads: independent memories.
        head_dim: width of queries, keys and values of a head; ``dim // heads`` if None.
        spec: what is computed; or its fields as keywords (``bias="huber", chunk_size=16``), which also override it.
        around: what surrounds the memory.
        path: forces an engine; see `AssociativeMemory`.
        tolerance: of the ``picard`` path.

    Example:
        >>> memory = Memory(32, heads=2, bias="huber", retention="kl", chunk_size=8)
        >>> y, state = memory(torch.randn(1, 20, 32))
        >>> y_t, state = memory.step(torch.randn(1, 32), state)
        >>> y_t.shape, state.phase
        (torch.Size([1, 32]), (5,))
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        spec: MirasSpec | None = None,
        around: Surroundings | None = None,
        path: Path | None = None,
        tolerance: float | None = None,
        **fields: Any,
    ):
        super().__init__()
        if not all(isinstance(n, int) and n >= 1 for n in (dim, heads, 1 if head_dim is None else head_dim)):
            raise ValueError(
                f"dim, heads and head_dim must be integers of at least 1, got {dim}, {heads} and {head_dim}"
            )
        if head_dim is None and dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads: pass head_dim")
        self.dim, self.heads, self.head_dim = dim, heads, head_dim or dim // heads
        self.spec = changed(spec, fields, OWN)
        around = around or Surroundings()
        if not isinstance(around, Surroundings):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"around must be Surroundings(...), got {type(around).__name__}")
        if self.spec.algorithm.steps > around.pairs:
            around = replace(around, pairs=self.spec.algorithm.steps)
        self.around = around
        self.core = self.make_core(self.spec, path=path, tolerance=tolerance)

        # what is projected: ties may make more pairs and other gates of it
        inner, pairs = heads * self.head_dim, next((t.pairs for t in around.ties if t.pairs), around.pairs)
        gates = projected(self.spec.gates, around.ties)
        self.pairs = pairs
        self.qkv = nn.Linear(dim, inner * (1 + 2 * pairs), bias=False)
        self.conv = nn.Parameter(torch.empty(inner * (1 + 2 * pairs), around.conv)) if around.conv else None
        of_pairs = {g: pairs if g in self.spec.pair_gates else 1 for g in gates}
        width = (self.head_dim, self.head_dim, len(self.core.shapes(self.head_dim, self.head_dim)))
        self.gates = GateProjection(dim, heads, gates, *width, of_pairs, around.gate_rank)
        numbers = (tie.parameters(heads, self.head_dim, self.head_dim) for tie in around.ties)
        self.ties = nn.ModuleList(nn.ParameterDict(numbers_of_one) for numbers_of_one in numbers)
        self.norm = nn.RMSNorm(self.head_dim) if around.output_norm else nn.Identity()
        self.gate = nn.Linear(dim, inner, bias=False) if around.output_gate else None
        self.out = nn.Linear(inner, dim, bias=False)
        self.d_value = functools.reduce(lambda d, tie: tie.width(d), around.ties, self.head_dim)
        self.start = self._start()
        self.reset_parameters()

    def make_core(self, spec: MirasSpec, **how: Any) -> AssociativeMemory:
        """The pure memory inside; layers of several memories return a `miras.composite.Composite`."""
        return AssociativeMemory(spec, **how)

    def _start(self) -> nn.ParameterDict:
        """The raw memory before the first token; parameter names may not hold dots, those of a wrapped module do."""
        raw = self.core.random_memory(self.heads, self.head_dim, self.d_value)
        if self.around.zero_start:
            if len(raw) > 1 or not self.spec.retention.link_is_identity:
                raise ValueError(
                    f"zero_start is for a memory of one weight without a link; architecture {self.spec.architecture.name!r} "
                    f"with retention {self.spec.retention.name!r} would never leave zero"
                )
            raw = {n: torch.zeros_like(w) for n, w in raw.items()}
        learned = self.around.learn_start and not self.around.zero_start
        return nn.ParameterDict({n.replace(".", "/"): nn.Parameter(w, requires_grad=learned) for n, w in raw.items()})

    def reset_parameters(self) -> None:
        """Projections with variance 1 / fan-in; the convolution starts near the identity on the newest token."""
        for linear in (self.qkv, self.gate, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        if self.conv is not None:
            nn.init.normal_(self.conv, std=0.1)
            with torch.no_grad():
                self.conv[:, -1] += 1.0

    def initial_state(self, batch: int) -> MemoryState:
        """The state before the first token of ``batch`` rows."""
        raw = {n.replace("/", "."): w for n, w in self.start.items()}
        state = self.core.initial_state(raw, batch, self.head_dim, self.d_value, self.around.pairs)
        if self.conv is None:
            return state
        like = next(iter(raw.values()))
        tail = like.new_zeros(batch, self._kernel().shape[1] - 1, self.conv.shape[0], dtype=_wide(like.dtype))
        return with_tail(state, tail)

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        views: tuple[Tensor, Tensor, Tensor] | None = None,
        path: Path | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Reads and writes a sequence.

        Args:
            x: ``[B, T, dim]``.
            state: what an earlier call returned; None starts from the learned memory.
            mask: ``[B, T]`` bool, False for tokens to skip (padding on either side, or anywhere).
            cu_seqlens: ``[N + 1]`` boundaries of documents packed into one row; the state then has N rows.
            views: ``[B, T, dim]`` each, what queries, keys and values are projected from if not from x.
            path: forces an engine for this call.

        Returns:
            ``[B, T, dim]`` and the state after the last token.
        """
        self._check(x)
        if cu_seqlens is not None:
            if mask is not None or views is not None:
                raise ValueError(f"pass {'views' if mask is None else 'mask'} or cu_seqlens, not both")
            rows, keep = side_by_side(x, cu_seqlens)
            y, after = self.forward(rows, state, mask=keep, path=path)
            return y[keep].unsqueeze(0), after
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"mask must be a bool tensor {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
        if state is None:
            state = self.initial_state(x.shape[0])
        if state.batch != x.shape[0]:
            raise ValueError(f"the state has {state.batch} rows where {x.shape[0]} are needed")
        if (self.conv is None) == ("conv" in state.extra):
            raise ValueError("the state is of another memory: one of the two has a convolution (Surroundings.conv)")
        if not x.shape[0] * x.shape[1]:
            return x, state
        tokens, tail = self.project(x, state, mask, views)
        y, after = self.stream(tokens, state, tail, mask, path)
        return self.emit(x, y), after

    def step(self, x: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryState]:
        """One token ``[B, dim]``: the same code and the same numbers as a whole sequence."""
        if x.dim() != 2:
            raise ValueError(
                f"step takes one token, [B, {self.dim}], got {tuple(x.shape)}; call the memory for sequences"
            )
        y, after = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), after

    @property
    def tied(self) -> list[dict[str, Tensor]]:
        """The learned numbers of every tie."""
        return [dict(p.items()) for p in self.ties]  # type: ignore[operator]

    def project(
        self,
        x: Tensor,
        state: MemoryState,
        mask: Tensor | None = None,
        views: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tokens, Tensor | None]:
        """Queries, keys, values and gates as the first tie takes them, and the convolution's tail after the sequence."""
        if views is None:
            line = self.qkv(x)
        else:
            weights = self.qkv.weight.split([self._inner, self.pairs * self._inner, self.pairs * self._inner])
            line = torch.cat([F.linear(z, w) for z, w in zip(views, weights, strict=True)], -1)
        q, k, v, tail = self._in_heads(line, state, mask)
        return Tokens(q, k, v, self.gates(x)), tail

    def queries(self, x: Tensor, state: MemoryState, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Queries alone, where they come from another sequence than what is written; and their part of the tail."""
        q, _, _, tail = self._in_heads(F.linear(x, self.qkv.weight[: self._inner]), state, mask, writes=False)
        return q, tail

    def writes(
        self, x: Tensor, state: MemoryState, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor | None]:
        """Keys, values and gates alone, and their part of the tail; see `queries`."""
        _, k, v, tail = self._in_heads(F.linear(x, self.qkv.weight[self._inner :]), state, mask, reads=False)
        return k, v, self.gates(x), tail

    def stream(
        self,
        tokens: Tokens,
        state: MemoryState,
        tail: Tensor | None,
        mask: Tensor | None = None,
        path: Path | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """The memory behind its ties on what was projected; the state after it keeps ``tail``."""
        core = self.core if path is None else self.core.on(path)
        inner = without_tail(state)
        y, after = through(self.around.ties, tokens, self.tied, lambda t: core(*t, inner, mask=mask))
        if mask is not None and self.around.ties:  # they may answer tokens that the memory skips
            y = y * mask[..., None, None]
        return y, after if tail is None else with_tail(after, tail)

    def read(self, state: MemoryState, q: Tensor) -> Tensor:
        """What the memory answers to ``q [B, T, H, D]`` now, without writing: ``[B, T, H, D]``."""
        y = self.core.read(without_tail(state), q, self.d_value)
        nothing = Tokens(q, torch.zeros_like(q), torch.zeros_like(q), {})
        for tie, numbers in reversed(list(zip(self.around.ties, self.tied, strict=True))):
            y = tie.after(y, nothing, numbers)
        return y

    def emit(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output from the memory's answers ``[B, T, H, D]``."""
        gate = None if self.gate is None else self.gate(x)
        if gate is not None and (gated := kernels.gated(y, self.norm, gate)) is not None:
            return self.out(gated)
        y = rearrange(self.norm(y.to(self.out.weight.dtype)), "b t h d -> b t (h d)")
        return self.out(y if gate is None else y * F.silu(gate))

    def inspect(self, x: Tensor, state: MemoryState | None = None) -> dict[str, Tensor]:
        """What the memory saw: ``surprise`` (the inner loss at the anchor) and every gate, ``[B, T, H, ...]``."""
        state = self.initial_state(x.shape[0]) if state is None else state
        tokens, _ = self.project(x, state)
        tokens = given(self.around.ties, tokens, self.tied)
        return {"surprise": self.core.surprise(*tokens, without_tail(state)), **tokens.gates}

    def explain(self) -> Explanation:
        """Which path runs, why not a faster one, and what a token costs. Print it."""
        weight = self.qkv.weight
        where = (weight.device, weight.dtype)
        return explain(self.core, self.head_dim, self.d_value, self.heads, self.around.pairs, where)

    def extra_repr(self) -> str:
        """The spec, one axis a line."""
        spec = self.spec
        parts = [f"{self.dim}, heads={self.heads}, head_dim={self.head_dim}"]
        parts += [f"{axis}={getattr(spec, axis)}" for axis in ("architecture", "bias", "retention", "algorithm")]
        numbers = f"chunk_size={spec.chunk_size}, anchor_lag={spec.anchor_lag}, read={spec.read!r}, step_bound={spec.step_bound}"
        return ",\n".join([*parts, numbers])

    @property
    def _inner(self) -> int:
        return self.heads * self.head_dim

    def _kernel(self) -> Tensor:
        """The convolution's taps, the newest last; with lookahead, keys end one token before the others."""
        assert self.conv is not None
        if not self.around.lookahead:
            return self.conv
        q, k, v = self.conv.split([self._inner, self.pairs * self._inner, self.pairs * self._inner])
        return torch.cat([F.pad(q, (1, 0)), F.pad(k, (0, 1)), F.pad(v, (1, 0))])

    def _in_heads(
        self, line: Tensor, state: MemoryState, mask: Tensor | None, reads: bool = True, writes: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values, and the tail they leave; ``line`` has those of reads, of writes, or of both."""
        part, pairs = slice(0 if reads else self._inner, None if writes else self._inner), self.pairs * writes
        taps = tail = None
        if self.conv is not None:
            taps, tail = self._kernel()[part], state.extra["conv"][..., part]
        counts = self.heads * reads, self.heads * pairs, self.heads * pairs
        how = self.around.activation == "silu", self.around.qk_norm, writes and self._rounds(line)
        q, k, v, tail = kernels.heads(line, taps, tail, counts, *how, mask)
        if pairs > 1:
            k, v = [rearrange(z, "b t (n h) d -> b t h n d", n=pairs) for z in (k, v)]
        return q, k, v, tail

    def _rounds(self, line: Tensor) -> bool:
        """Whether the memory will round its queries and keys to the dtype of what was projected."""
        if line.dtype == _wide(line.dtype) or self.around.ties or type(self.core) is not AssociativeMemory:
            return False
        where = (line.device, line.dtype)
        return self.core.plan(self.head_dim, self.d_value, self.around.pairs, where).path == "kernel"

    def unit(self, x: Tensor) -> Tensor:
        """Queries or keys scaled to length one, if `Surroundings.qk_norm` asks for it."""
        return unit(x) if self.around.qk_norm else x

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be [B, T, {self.dim}], got {tuple(x.shape)}")
        dtype = self.qkv.weight.dtype
        if not x.is_floating_point() or (x.dtype != dtype and not torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"x must be {dtype} as the weights are (or use autocast), got {x.dtype}")
        if checkable(x) and not all_finite(x):
            raise ValueError("x holds NaN or infinite numbers")


def with_tail(state: MemoryState, tail: Tensor) -> MemoryState:
    """The state and the convolution's tail."""
    return MemoryState(*state[:-1], state.extra | {"conv": tail})  # not `_replace`: see `AssociativeMemory`


def without_tail(state: MemoryState) -> MemoryState:
    """The state of the pure memory inside a layer's."""
    return state._replace(extra={n: e for n, e in state.extra.items() if n != "conv"})


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

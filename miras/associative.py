"""The pure core: queries, keys, values, gates and a state in; answers and a state out.

Shapes: B batch, T tokens, H heads, N pairs a token, D channels. The engine works on ``[B, H, T, D]``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from miras.architectures import FastWeight
from miras.engine import ragged
from miras.engine.plan import Path, Plan, plan
from miras.engine.problem import Inputs, answers, initial_state, micro_steps
from miras.engine.run import losses, run
from miras.engine.weights import Plain, read_weights
from miras.inputs import check, inputs
from miras.kernels import KERNELS, Dims, trust
from miras.kernels.table import constant
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


@dataclass(frozen=True)
class AssociativeMemory:
    r"""A memory as a pure function.

    Args:
        spec: what is computed.
        path: forces an engine (``kernel``, ``exact``, ``fused``, ``factored``, ``materialised``, ``reference``) instead of the
            planned one, or asks for ``picard``. Never changes a number beyond rounding.
        tolerance: of ``picard``: relative change at which its sweeps stop.

    Example:
        >>> import torch
        >>> memory = AssociativeMemory(MirasSpec(architecture="matrix", algorithm="gd", chunk_size=1))
        >>> q, k, v = torch.randn(3, 2, 10, 4, 8)
        >>> y, state = memory(q, k, v, {"lr": 0.1, "log_decay": -0.01})
        >>> y.shape, state.phase
        (torch.Size([2, 10, 4, 8]), (0, 0))
    """

    spec: MirasSpec
    path: Path | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not (self.path == "picard" and self.tolerance >= 0):
            raise ValueError(
                f"tolerance is a number of at least 0 with path='picard', got {self.tolerance} with {self.path!r}"
            )

    @property
    def main(self) -> AssociativeMemory:
        """The memory of ``spec`` by itself; another one only where a core holds several."""
        return self

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        """The fast weights for keys and values of these widths."""
        shapes = self.spec.architecture.shapes(d_key, d_value)
        return {n: w._replace(index=i) for i, (n, w) in enumerate(shapes.items())}

    def plan(
        self, d_key: int, d_value: int, pairs: int = 1, where: tuple[torch.device, torch.dtype] | None = None
    ) -> Plan:
        """Which engine runs, and why not a faster one; kernels only if device and dtype of the inputs are given."""
        if not torch.compiler.is_compiling():
            return _remembered_plan(self, d_key, d_value, pairs, where)
        path, tile, refused, tolerance, kernel, around = self._planned(d_key, d_value, pairs, where)
        named = next((k for k in KERNELS if k.name == kernel), None)
        return Plan(path, tile, dict(refused), tolerance, named, around)

    def random_memory(self, heads: int, d_key: int, d_value: int, generator: torch.Generator | None = None) -> Weights:
        """A raw random start of every fast weight, ``[H, *weight]``: never zero, never uniform, different in every head."""
        init = self.spec.architecture.init
        each = [init(d_key, d_value, generator=generator) for _ in range(heads)]
        return {n: torch.stack([w[n] for w in each]) for n in each[0]}

    def initial_state(self, raw: Weights, batch: int, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        """The state before the first token, from raw weights ``[H, *weight]`` shared by all rows."""
        shapes = self.shapes(d_key, d_value)
        if raw.keys() != shapes.keys():
            raise ValueError(f"this memory has the weights {sorted(shapes)}; got {sorted(raw)}")
        for n, w in raw.items():
            if w.shape[1:] != shapes[n].shape:
                raise ValueError(f"weight {n!r} must have shape [heads, *{shapes[n].shape}], got {tuple(w.shape)}")
        dtype = torch.promote_types(next(iter(raw.values())).dtype, torch.float32)
        start = {
            n: self.spec.retention.initial(w.to(dtype), len(shapes[n].shape)).expand(batch, *w.shape).clone()
            for n, w in raw.items()
        }
        return self.started(start, d_key, d_value, pairs)

    def started(self, memory: Weights, d_key: int, d_value: int, pairs: int = 1) -> MemoryState:
        """The state before the first token whose accumulators are ``memory``, ``[B, H, *weight]``."""
        pairs = 1 if self.spec.algorithm.steps > 1 else pairs
        return initial_state(self.spec, self.shapes(d_key, d_value), memory, d_key, d_value, pairs)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Mapping[str, Tensor | float],
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Writes (k, v) and reads q, token by token or as fast as that allows.

        Args:
            q: queries ``[B, T, H, D_key]``.
            k: keys ``[B, T, H, D_key]``, or ``[B, T, H, N, D_key]`` for N pairs a token.
            v: values ``[B, T, H, D_value]``, or ``[B, T, H, N, D_value]``.
            gates: for every gate of ``spec.gates`` a number or a tensor: per head ``[B, T, H]``, per channel (or fast
                weight) ``[B, T, H, D]``; gates of pairs may have N before D. Names starting with ``log_`` are logs, at most zero.
            state: what an earlier call returned. None starts a linear memory from zero; others need `initial_state`.
            mask: ``[B, T]``, False where a token is to be skipped: the result is as if it were not there; its output is 0.
            cu_seqlens: ``[N + 1]`` boundaries of documents packed into one row (B = 1); every document has its own state.

        Returns:
            Answers ``[B, T, H, D_value]`` in the dtype of v, and the state after the last token.

        Raises:
            ValueError: naming the argument that is wrong, what came and what to pass.
        """
        check(self.spec, q, k, v, mask, cu_seqlens)
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(v.dtype, torch.float32))
        pairs = k.shape[3] if k.dim() == 5 else 1
        rows = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        shapes = self.shapes(q.shape[-1], v.shape[-1])
        if state is None:
            state = self._blank(q, v, rows, pairs, dtype)
        state.check_like(self._like(q, v, pairs, dtype, rows))
        if any(phase >= self.spec.chunk_size for phase in state.phase):
            raise ValueError(
                f"the state is of another spec: its phase {state.phase} does not fit chunk_size {self.spec.chunk_size}"
            )
        if not q.shape[0] * q.shape[1]:
            return v.new_zeros(*q.shape[:3], v.shape[-1]), state
        planned = self.plan(q.shape[-1], v.shape[-1], pairs, (q.device, v.dtype))
        if planned.kernel is not None and torch.compiler.is_compiling():
            planned = self._tried(planned, q, v)
        with _full_precision(q.device):
            operands = v.dtype if planned.path == "kernel" else dtype
            x = inputs(self.spec, q.to(operands), k.to(operands), v.to(operands), gates, dtype)

            def go(part: Inputs, before: MemoryState) -> tuple[Tensor, MemoryState]:
                y, after = run(self.spec, shapes, planned, before, micro_steps(self.spec, part))
                return answers(self.spec, y), after

            if mask is None and cu_seqlens is None and len(set(state.phase)) == 1 and x.length:
                y, state = go(x, state)
            else:
                y, state = ragged.run(x, state, go, ragged.rows(x, mask, cu_seqlens))
        # Rebuilt: compilers of torch 2.11 return the result of `_replace` without its fields.
        return y.transpose(1, 2).to(v.dtype), MemoryState(*state)

    def surprise(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Mapping[str, Tensor | float], state: MemoryState
    ) -> Tensor:
        """The inner loss of every token at its anchor, before it is written: ``[B, T, H]`` (summed over pairs)."""
        check(self.spec, q, k, v, None, None)
        pairs = k.shape[3] if k.dim() == 5 else 1
        shapes = self.shapes(q.shape[-1], v.shape[-1])
        dtype = next(iter(state.memory.values())).dtype
        state.check_like(self._like(q, v, pairs, dtype, q.shape[0]))
        planned = self.plan(q.shape[-1], v.shape[-1], pairs)
        path: Path = "materialised" if "factored" in planned.refused else "factored"
        with _full_precision(q.device):
            x = inputs(self.spec, q.to(dtype), k.to(dtype), v.to(dtype), gates, dtype)
            frozen = Plan(path, self.spec.chunk_size)
            x, groups = micro_steps(self.spec, x), ragged.by_phase(state)
            found = [
                losses(self.spec, shapes, frozen, state.select(rows), x.map(lambda t, rows=rows: t[rows]))
                for rows in groups
            ]
        order = [row for rows in groups for row in rows]
        loss = torch.cat(found)[sorted(range(len(order)), key=order.__getitem__)]
        return loss.unflatten(2, (q.shape[1], -1)).sum(-1).transpose(1, 2)

    def read(self, state: MemoryState, q: Tensor, d_value: int) -> Tensor:
        """What the memory answers to q ``[B, T, H, D_key]`` now, without writing: ``[B, T, H, d_value]``."""
        if self.spec.algorithm.reads_through_query:
            raise ValueError(
                f"algorithm {self.spec.algorithm.name!r} solves for its queries while it writes; it has no plain read"
            )
        weights = read_weights(self.spec, self.shapes(q.shape[-1], d_value), state)
        dtype = next(iter(weights.values())).dtype
        y = self.spec.architecture.forward(Plain(weights), q.transpose(1, 2).to(dtype))
        return y.transpose(1, 2).to(q.dtype)

    def on(self, path: Path, tolerance: float | None = None) -> AssociativeMemory:
        """The same memory on another engine."""
        return replace(self, path=path, tolerance=tolerance)

    def _like(self, q: Tensor, v: Tensor, pairs: int, dtype: torch.dtype, rows: int) -> MemoryState:
        """What a given state is compared with."""
        make = _template if torch.compiler.is_compiling() else _remembered_template
        return make(self, rows, q.shape[2], q.shape[-1], v.shape[-1], pairs, dtype)

    def _tried(self, planned: Plan, q: Tensor, v: Tensor) -> Plan:
        """The plan with the kernel that is trusted there, as a compiler traces it."""
        assert planned.kernel is not None
        name = self._trusted(planned.kernel.name, q.shape[-1], v.shape[-1], q.device, v.dtype)
        if not name:
            return replace(planned, path=planned.around, kernel=None)
        return replace(planned, kernel=next(k for k in KERNELS if k.name == name))

    @constant
    def _planned(
        self, d_key: int, d_value: int, pairs: int, where: tuple[torch.device, torch.dtype] | None
    ) -> tuple[Path, int, tuple[tuple[Path, str], ...], float, str, Path]:
        """The plan's fields, and its kernel by name. Compilers have it run: they cannot trace how a spec is made."""
        found = _remembered_plan(self, d_key, d_value, pairs, where)
        kernel = found.kernel.name if found.kernel else ""
        return found.path, found.tile, tuple(found.refused.items()), found.tolerance, kernel, found.around

    @constant
    def _trusted(self, kernel: str, d_key: int, d_value: int, device: torch.device, dtype: torch.dtype) -> str:
        """The name of the kernel that may be used for that one, none for none. Compilers have it run instead of tracing it."""
        [named] = [k for k in KERNELS if k.name == kernel]
        with trust.running():
            found = trust.trusted(named, self.spec, Dims(d_key, d_value), device, dtype)
        return found.name if found else ""

    def _blank(self, q: Tensor, v: Tensor, rows: int, pairs: int, dtype: torch.dtype) -> MemoryState:
        if not (self.spec.architecture.is_linear and self.spec.retention.link_is_identity):
            raise ValueError(
                f"a memory with architecture {self.spec.architecture.name!r} and retention {self.spec.retention.name!r} cannot "
                "start from zero: pass state=memory.initial_state(memory.random_memory(...), ...)"
            )
        heads, d_key, d_value = q.shape[2], q.shape[-1], v.shape[-1]
        raw = {n: q.new_zeros(heads, *w.shape, dtype=dtype) for n, w in self.shapes(d_key, d_value).items()}
        return self.initial_state(raw, rows, d_key, d_value, pairs)


def _plan(
    memory: AssociativeMemory, d_key: int, d_value: int, pairs: int, where: tuple[torch.device, torch.dtype] | None
) -> Plan:
    spec, shapes = memory.spec, memory.shapes(d_key, d_value)
    pairs = 1 if spec.algorithm.steps > 1 else pairs
    return plan(spec, shapes, pairs, memory.path, memory.tolerance, Dims(d_key, d_value), where)


_remembered_plan = lru_cache(_plan)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """States are float32 under autocast too; the meta device has no autocast to switch off."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _template(
    memory: AssociativeMemory, rows: int, heads: int, d_key: int, d_value: int, pairs: int, dtype: torch.dtype
) -> MemoryState:
    """A state of the right structure, on the meta device."""
    blank = {
        n: torch.empty(rows, heads, *w.shape, dtype=dtype, device="meta")
        for n, w in memory.shapes(d_key, d_value).items()
    }
    return memory.started(blank, d_key, d_value, pairs)


_remembered_template = lru_cache(_template)

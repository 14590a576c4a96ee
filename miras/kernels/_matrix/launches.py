"""How the kernels of a matrix memory are launched: sizes, configurations, scratch memory.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.engine.weights import LIMIT
from miras.kernels import assembler
from miras.kernels._matrix import pull as _pull
from miras.kernels._matrix import reverse as _reverse
from miras.kernels._matrix import scan
from miras.kernels.residuals import Residual
from miras.kernels.table import launch, power

EVERY = 16
"""Tiles from one stored state to the next; backward computes the states between again, all stretches at once."""


class Tiles(NamedTuple):
    """Sizes and what a launch needs to know."""

    B: int
    H: int
    T: int
    C: int
    m: int
    J: int
    I: int
    O: int
    dtype: torch.dtype
    solve: bool = False  # whether tokens see those before them in their tile

    @property
    def programs(self) -> int:
        return self.B * self.H


INVERSE: dict[str, int] = {"num_warps": 4}
"""Of the kernel that solves the system of a tile."""


class Config(NamedTuple):
    """Value channels of a program, its warps, and how far loads run ahead."""

    block: int
    warps: int
    stages: int


NARROW: dict[tuple[int, int, bool], dict[str, Config]] = {
    (1, 64, True): {"scan": Config(32, 4, 3), "reverse": Config(32, 4, 3)},
    (1, 128, True): {"scan": Config(32, 4, 2), "states": Config(32, 4, 3), "reverse": Config(32, 4, 2)},
    (2, 128, False): {
        "scan": Config(32, 4, 2),
        "states": Config(32, 4, 3),
        "reverse": Config(32, 4, 2),
        "carry": Config(32, 4, 3),
    },
    (2, 128, True): {"states": Config(32, 4, 3), "reverse": Config(32, 4, 2)},
}
"""What an assembler that is right with narrow blocks changes, by memory and slots, key channels, and whether tokens see those before
them, in tiles of 64 tokens. Measured on an H200 with 64 heads, delta rules with and without momentum, and Huber with momentum."""

AHEAD = {(1, 64): 3, (2, 128): 2}
"""How far loads run ahead under such an assembler where a program has all value channels, by memory and slots and by channels. Measured
likewise, TTT-Linear and Huber with momentum and a bound."""


def config(x: Tiles, rowwise: bool, kernel: str) -> Config:
    """A table, not a search: the first call of a shape compiles each kernel once.

    Kernels are scan, states (the same, again), carry, reverse, readers, keys (as readers) and writers.

    Where tensor cores work on 64 rows (a tile or a head that large), a block has at least 64 channels unless the assembler is sound:
    narrower ones were seen to read outside of shared memory on Hopper, in kernels that loop over tiles.
    """
    width, wide = power(x.O), max(power(x.C), power(x.I)) >= 64
    sound = x.dtype != torch.float32 and assembler.sound()
    if kernel in ("readers", "keys") or (kernel == "writers" and x.I <= 64):
        return Config(64 if wide else min(width, 32), 4, 2)
    if kernel == "writers":
        return Config(32, 4, 3 if sound and x.I <= 128 else 2)
    if rowwise:
        stages = AHEAD.get((x.J, x.I), 1) if sound and x.I == x.O else 1
        return Config(max(width, 64) if wide else width, 8 if width * power(x.I) > 64 * 64 else 4, stages)
    narrow = NARROW.get((x.J, x.I, x.solve), {}).get(kernel) if sound and power(x.C) == 64 else None
    if narrow:
        return narrow
    warps = 4 if x.I <= 64 or (kernel == "carry" and x.I <= 128) else 8
    stages = 3 if kernel == "scan" and x.J == 1 and x.I <= 64 else 2 if x.I <= 128 else 1
    return Config(64 if wide else min(width, 32), warps, stages)


def shared_arguments(x: Tiles, rowwise: bool, kernel: str) -> tuple[int, dict[str, Any]]:
    """The number of value blocks, and the compile-time arguments that all kernels share."""
    import triton.language as tl  # pyright: ignore[reportMissingTypeStubs]

    c = config(x, rowwise, kernel)
    bc, bi = power(x.C), power(x.I)
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return -(-x.O // c.block), {
        "J": x.J,
        "BC": bc,
        "BI": bi,
        "BV": c.block,
        "NV": -(-x.O // c.block),
        "FULL": bc == x.C and x.T % x.C == 0 and bi == x.I and x.O % c.block == 0,
        "PRECISION": "tf32" if tf32 else "ieee",
        "DT": {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype],
        "num_warps": c.warps,
        "num_stages": c.stages,
    }


def _whole(call: Call, found: Residual, more: Mapping[str, Any]) -> bool:
    """Whether a program has all value channels: for their norm, unless programs meet to add up theirs."""
    return found.rowwise or (call.inverse is not None and "MEET" not in more)


def strides(*tensors: Tensor | None) -> list[int]:
    return [s for t in tensors for s in ((0, 0, 0) if t is None or t.dim() < 4 else t.stride()[:3])]


def rowed(x: Tensor) -> Tensor:
    """Channels next to each other, whatever the other strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Call(NamedTuple):
    """The arguments of the operator `miras.kernels._matrix.ops.matrix` that are gates, coefficients or vectors."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    inverse: Tensor | None
    gate: Tensor | None
    slope: Tensor | None
    rows: Tensor
    pairs: Tensor
    into: Tensor
    mix: Tensor
    key_rows: Tensor | None
    key_pairs: Tensor | None

    @classmethod
    def of(cls, *tensors: Tensor | None) -> Call:
        call = cls._make(tensors)
        return call._replace(q=rowed(call.q), k=rowed(call.k), v=rowed(call.v))

    @property
    def tiles(self) -> Tiles:
        (B, H, T, I), (m, J, C) = self.q.shape, self.rows.shape[2:5]
        return Tiles(B, H, T, C, m, J, I, self.v.shape[-1], self.q.dtype, self.slope is not None)

    @property
    def flags(self) -> dict[str, Any]:
        kind = 0 if self.gate is None else self.gate.dim() - 2
        return {"BOUND": self.inverse is not None, "SOLVE": self.slope is not None, "GATE": kind}

    @property
    def form(self) -> dict[str, int]:
        """What stands in the place of pairs, see `miras.kernels._coefficients.formed`."""
        return {"FORM": {2: 1, 0: 2, 1: 3}[self.pairs.shape[-2]]} if self.pairs.dim() == 6 else {}

    @property
    def scanned(self) -> tuple[Tensor | None, ...]:
        """What both scans read."""
        return *self[:6], *self[7:12]

    def sizes(self) -> tuple[int, ...]:
        x = self.tiles
        return x.H, x.T, x.C, x.m, x.I, x.O


class Scratch:
    """What backward computes again and the gradients it passes from kernel to kernel."""

    def __init__(self, call: Call, kept: torch.dtype):
        x, q = call.tiles, call.q
        states, tokens = (x.B, x.H, x.m, x.J, x.I, x.O), (x.B, x.H, x.T, x.O)
        self.states, self.d_states = q.new_empty(states, dtype=kept), q.new_empty(states)
        self.errors, self.predictions, self.d_predictions = (q.new_empty(tokens) for _ in range(3))
        bound = tokens[:3] if call.inverse is not None else (0,)
        self.rates, self.d_norms = call.lr.new_empty(bound), call.lr.new_empty(bound)


def solve(call: Call) -> Tensor:
    """The inverse of every tile's triangular system, ``[B, H, m, C, C]``; nothing where no token sees another."""
    x = call.tiles
    solved = call.q.new_empty(x.B, x.H, x.m if call.slope is not None else 0, x.C, x.C)
    if call.slope is None:
        return solved
    _, shared = shared_arguments(x, False, "scan")
    bc, bi = shared["BC"], shared["BI"]
    exact = x.dtype == torch.float32 and shared["PRECISION"] == "ieee"
    launch(
        _pull.inverse, x.programs * x.m,
        call.k, call.lr, call.slope, call.key_pairs, solved, *strides(call.k), *call.sizes()[:5],
        BC=bc, LEVELS=bc.bit_length() - 1, BI=bi, FULL=bc == x.C and x.T % x.C == 0 and bi == x.I,
        PRECISION="ieee" if exact else "tf32", **INVERSE, **call.form,
    )  # fmt: skip
    return solved


def forward(
    call: Call, solved: Tensor, start: Tensor, found: Residual, keep: bool, **more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the stack at the end, and (``keep``) the stacks before every stretch of tiles.

    ``more``, here and below: arguments of kernels that only some memories have.
    """
    x = call.tiles
    o, end = call.q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2), torch.empty_like(start)
    stored = start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, x.J, x.I, x.O)
    blocks, shared = shared_arguments(x, _whole(call, found, more), "scan")
    count = EVERY if keep else x.m
    launch(
        scan.scan, x.programs * blocks, *call.scanned, solved, start, o, end, stored, None, None, None, None,
        *strides(call.q, call.k, call.v, o, call.gate), *call.sizes(), count, 1, -(-x.m // count),
        READ=True, CHECK=keep, SAVE=False, RESIDUAL=found.residual, CONSTANTS=found.constants, **call.flags, **call.form, **shared, **more,
    )  # fmt: skip
    return o, end, stored


def again(call: Call, solved: Tensor, stored: Tensor, found: Residual, **more: Any) -> Scratch:
    """The states before all tiles, predictions and errors, from the stored stacks."""
    x, scratch = call.tiles, Scratch(call, stored.dtype if "LINK" in more else call.q.dtype)
    blocks, shared = shared_arguments(x, _whole(call, found, more), "states")
    segments = -(-x.m // EVERY)
    launch(
        scan.scan, x.programs * blocks * segments, *call.scanned, solved, stored, None, None, None,
        scratch.states, scratch.errors, scratch.predictions, scratch.rates,
        *strides(call.q, call.k, call.v, None, call.gate), *call.sizes(), EVERY, segments, 1,
        READ=False, CHECK=False, SAVE=True, RESIDUAL=found.residual, CONSTANTS=found.constants, **call.flags, **call.form, **shared, **more,
    )  # fmt: skip
    return scratch


class Reversed(NamedTuple):
    """Gradients that the scan from the last tile to the first finds."""

    v: Tensor
    gate: Tensor
    lr: Tensor
    inverse: Tensor
    start: Tensor
    level: Tensor | None  # a part from every block of value channels, in the last dimension


def reverse(
    call: Call, solved: Tensor, scratch: Scratch, d_o: Tensor, d_end: Tensor, found: Residual, **more: Any
) -> Reversed:
    """Gradients of states and predictions, into the scratch memory, and of what no other kernel sees."""
    x, flags = call.tiles, call.flags
    bound, kind = flags["BOUND"], flags["GATE"]
    blocks, shared = shared_arguments(x, _whole(call, found, more), "reverse")
    token = call.lr.shape
    gates = (blocks, *token) if kind == 1 else (1, *token, x.O) if kind == 2 else (1, 0)
    d_gate, d_lr, d_inverse = (call.lr.new_empty(n) for n in (gates, *[token if bound else (0,)] * 2))
    levels = {"d_level": call.lr.new_empty(x.B, x.H, x.m, blocks)} if more.get("LEVEL") else {}
    d_v, d_start = call.v.new_empty(call.v.shape), d_end.new_empty(d_end.shape)
    out = Reversed(d_v, d_gate, d_lr, d_inverse, d_start, levels.get("d_level"))
    launch(
        _reverse.reverse, x.programs * blocks, *call.scanned, solved,
        scratch.errors, scratch.predictions, scratch.rates, d_o, d_end.contiguous(), scratch.d_states,
        scratch.d_predictions, out.v, out.gate, out.lr, out.inverse, scratch.d_norms, out.start,
        *strides(call.q, call.k, call.v, d_o, call.gate), *call.sizes(), x.programs * x.T,
        LIMIT=LIMIT if bound else 0.0, VJP=found.vjp, CONSTANTS=found.constants, **flags, **call.form, **shared,
        **levels, **more,
    )  # fmt: skip
    return out._replace(gate=d_gate.sum(0) if len(d_gate) > 1 else d_gate[0])


class Pulled(NamedTuple):
    """Gradients that every tile finds by itself."""

    q: Tensor
    k: Tensor
    rate: Tensor
    slope: Tensor
    rows: Tensor
    pairs: Tensor
    into: Tensor
    mix: Tensor
    key_rows: Tensor
    key_pairs: Tensor


def pull(
    call: Call,
    scratch: Scratch,
    d_o: Tensor,
    readers: Mapping[str, Any] = MappingProxyType({}),
    writers: Mapping[str, Any] = MappingProxyType({}),
) -> Pulled:
    """Gradients of readers, of keys as readers where every token sees those before it, and of writers."""
    x, solves, bound = call.tiles, call.slope is not None, call.inverse is not None
    like = (
        call.q,
        call.k,
        call.lr,
        call.slope,
        call.rows,
        call.pairs,
        call.into,
        call.mix,
        call.key_rows,
        call.key_pairs,
    )
    d = Pulled(*(call.lr.new_empty(0) if t is None else t.new_empty(t.shape) for t in like))
    rates, tiles, sizes = scratch.rates if bound else call.lr, x.programs * x.m, call.sizes()
    seen = (scratch.states, scratch.errors)
    _, shared = shared_arguments(x, False, "readers")
    launch(
        _pull.readers, tiles, call.q, call.k, rates, call.rows, call.pairs, None, *seen, d_o,
        d.q, d.rate, d.rows, d.pairs, None, *strides(call.q, call.k, d_o), *sizes, KEYS=False, **call.form, **shared, **readers,
    )  # fmt: skip
    if solves:
        upstream = scratch.d_predictions
        _, shared = shared_arguments(x, False, "keys")
        launch(
            _pull.readers, tiles, call.k, call.k, rates, call.key_rows, call.key_pairs, call.slope, *seen, upstream,
            d.k, d.rate, d.key_rows, d.key_pairs, d.slope, *strides(call.k, call.k, upstream), *sizes, KEYS=True, **call.form, **shared,
        )  # fmt: skip
    _, shared = shared_arguments(x, False, "writers")
    launch(
        _pull.writers, tiles, call.q, call.k, rates, call.pairs, call.into, call.key_pairs, *seen, d_o, scratch.d_states,
        scratch.d_predictions, scratch.d_norms, d.k, d.rate, d.into, d.mix,
        *strides(call.q, call.k, d_o), *sizes, BOUND=bound, SOLVE=solves, **call.form, **shared, **writers,
    )  # fmt: skip
    return d

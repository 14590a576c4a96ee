"""The matrix memory as two operators that compilers see as one node each.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.engine.weights import LIMIT
from miras.kernels import residuals
from miras.kernels.table import launch

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

    @classmethod
    def of(cls, q: Tensor, v: Tensor, rows: Tensor) -> Tiles:
        B, H, T, I = q.shape
        return cls(B, H, T, rows.shape[-1], rows.shape[2], rows.shape[3], I, v.shape[-1], q.dtype)

    @property
    def programs(self) -> int:
        return self.B * self.H


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


class Config(NamedTuple):
    """Value channels of a program, its warps, and how far loads run ahead."""

    block: int
    warps: int
    stages: int


def config(x: Tiles, rowwise: bool, kernel: str) -> Config:
    """A table, not a search: the first call of a shape compiles each kernel once.

    Where tensor cores work on 64 rows (a tile or a head that large), a block has at least 64 channels: narrower ones were
    seen to read outside of shared memory under Triton 3.6.0 on Hopper, in kernels that loop over tiles.
    """
    width, wide = _power(x.O), max(_power(x.C), _power(x.I)) >= 64
    if kernel == "readers" or (kernel == "writers" and x.I <= 64):
        return Config(64 if wide else min(width, 32), 4, 2)
    if kernel == "writers":
        return Config(32, 4, 2)
    if rowwise:
        return Config(max(width, 64) if wide else width, 8 if width * _power(x.I) > 64 * 64 else 4, 1)
    return Config(64 if wide else min(width, 32), 8 if x.I > 64 else 4, 2 if x.I <= 128 else 1)


def _launch(x: Tiles, rowwise: bool, kernel: str) -> tuple[int, dict[str, Any]]:
    """The number of value blocks, and the compile-time arguments that all kernels share."""
    import triton.language as tl  # pyright: ignore[reportMissingTypeStubs]

    c = config(x, rowwise, kernel)
    bc, bi = _power(x.C), _power(x.I)
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


def _strides(*tensors: Tensor | None) -> list[int]:
    return [s for t in tensors for s in ((0, 0, 0) if t is None or t.dim() < 4 else t.stride()[:3])]


def _rowed(x: Tensor) -> Tensor:
    """Channels next to each other, whatever the other strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _gate_kind(gate: Tensor | None) -> int:
    return 0 if gate is None else gate.dim() - 2


@torch.library.custom_op("miras::matrix", mutates_args=())
def matrix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    start: Tensor,
    bias: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles of a matrix memory; see `miras.kernels._scan`.

    Args:
        q: ``[B, H, T, I]``.
        k: ``[B, H, T, I]``.
        v: ``[B, H, T, O]``; for the key ``affine`` the offsets.
        lr: ``[B, H, T]``.
        inverse: ``[B, H, T]`` where steps are bounded.
        gate: of the bias, ``[B, H, T]`` or ``[B, H, T, O]``.
        slope: of an affine residual, ``[B, H, T]``: then every token sees those before it.
        rows: ``[B, H, m, J, C]``, what readers multiply memory and slots with.
        pairs: ``[B, H, m, C, C]``.
        into: ``[B, H, m, J, C]``.
        mix: ``[B, H, m, J, J]``.
        key_rows: as rows, of the state a token's prediction sees; with ``slope`` only.
        key_pairs: as pairs, likewise.
        start: ``[B, H, J, I, O]``.
        bias: key from `miras.kernels.residuals.remember`.
        keep: whether backward will follow.

    Returns:
        Outputs ``[B, H, T, O]``, the stack at the end, stored states and solved systems.
    """
    from miras.kernels import _pull, _scan

    x, found = Tiles.of(q, v, rows), residuals.recall(bias)
    q, k, v = _rowed(q), _rowed(k), _rowed(v)
    o = q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2)
    end = torch.empty_like(start)
    stored = start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, x.J, x.I, x.O)
    solved = q.new_empty(x.B, x.H, x.m if slope is not None else 0, x.C, x.C)
    solve = slope is not None
    if solve:
        _, shared = _launch(x, False, "scan")
        precision = "ieee" if x.dtype == torch.float32 and shared["PRECISION"] == "ieee" else "tf32"
        launch(
        _pull.inverse, x.programs * x.m,
            k, lr, slope, key_pairs, solved, *_strides(k), x.H, x.T, x.C, x.m, x.I,
            BC=shared["BC"], LEVELS=shared["BC"].bit_length() - 1, BI=shared["BI"],
            FULL=shared["BC"] == x.C and x.T % x.C == 0 and shared["BI"] == x.I, PRECISION=precision,
        )  # fmt: skip
    blocks, shared = _launch(x, found.rowwise or inverse is not None, "scan")
    count = EVERY if keep else x.m
    launch(
        _scan.scan, x.programs * blocks,
        q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solved, start,
        o, end, stored, None, None, None, None,
        *_strides(q, k, v, o, gate), x.H, x.T, x.C, x.m, x.I, x.O, count, 1, -(-x.m // count),
        READ=True, CHECK=keep, SAVE=False, BOUND=inverse is not None, SOLVE=solve, GATE=_gate_kind(gate),
        RESIDUAL=found.residual, CONSTANTS=found.constants, **shared,
    )  # fmt: skip
    return o, end, stored, solved


@matrix.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    start: Tensor,
    bias: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = Tiles.of(q, v, rows)
    return (
        q.new_empty(x.B, x.T, x.H, x.O).transpose(1, 2),
        torch.empty_like(start),
        start.new_empty(x.B, x.H, -(-x.m // EVERY) if keep else 0, x.J, x.I, x.O),
        q.new_empty(x.B, x.H, x.m if slope is not None else 0, x.C, x.C),
    )


@torch.library.custom_op("miras::matrix_backward", mutates_args=())
def matrix_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    stored: Tensor,
    solved: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    bias: str,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `matrix` in their order; an empty tensor for one that is None."""
    from miras.kernels import _pull, _scan

    x, found = Tiles.of(q, v, rows), residuals.recall(bias)
    q, k, v, d_o = _rowed(q), _rowed(k), _rowed(v), _rowed(d_o)
    solve, bound = slope is not None, inverse is not None
    rowwise = found.rowwise or bound
    scratch = _Scratch(x, q, bound)
    blocks, shared = _launch(x, rowwise, "scan")
    segments = -(-x.m // EVERY)
    launch(
        _scan.scan, x.programs * blocks * segments,
        q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solved, stored,
        None, None, None, scratch.states, scratch.errors, scratch.predictions, scratch.rates,
        *_strides(q, k, v, None, gate), x.H, x.T, x.C, x.m, x.I, x.O, EVERY, segments, 1,
        READ=False, CHECK=False, SAVE=True, BOUND=bound, SOLVE=solve, GATE=_gate_kind(gate),
        RESIDUAL=found.residual, CONSTANTS=found.constants, **shared,
    )  # fmt: skip
    blocks, shared = _launch(x, rowwise, "reverse")
    token = lr.shape
    dv, d_start = torch.empty_like(v, memory_format=torch.contiguous_format), d_end.new_empty(d_end.shape)
    kind = _gate_kind(gate)
    d_gate = lr.new_empty((blocks, *token) if kind == 1 else (1, *token, x.O) if kind == 2 else (1, 0))
    d_lr, d_inverse, d_norms = (lr.new_empty(token if bound else (0,)) for _ in range(3))
    launch(
        _scan.reverse, x.programs * blocks,
        q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solved,
        scratch.errors, scratch.predictions, scratch.rates, d_o, d_end.contiguous(),
        scratch.d_states, scratch.d_predictions, dv, d_gate, d_lr, d_inverse, d_norms, d_start,
        *_strides(q, k, v, d_o, gate), x.H, x.T, x.C, x.m, x.I, x.O, x.programs * x.T,
        BOUND=bound, SOLVE=solve, GATE=kind, LIMIT=LIMIT if bound else 0.0,
        VJP=found.vjp, CONSTANTS=found.constants, **shared,
    )  # fmt: skip
    dq, dk = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k))
    rates, d_rates = scratch.rates if bound else lr, lr.new_empty(token)
    d_rows, d_pairs, d_into, d_mix = (torch.empty_like(t) for t in (rows, pairs, into, mix))
    d_key_rows, d_key_pairs, d_slope = (
        lr.new_empty(0) if t is None else torch.empty_like(t) for t in (key_rows, key_pairs, slope)
    )
    tiles, sizes = x.programs * x.m, (x.H, x.T, x.C, x.m, x.I, x.O)
    _, shared = _launch(x, False, "readers")
    launch(
        _pull.readers, tiles,
        q, k, rates, rows, pairs, None, scratch.states, scratch.errors, d_o, dq, d_rates, d_rows, d_pairs, None,
        *_strides(q, k, d_o), *sizes, KEYS=False, **shared,
    )  # fmt: skip
    if solve:
        upstream = scratch.d_predictions
        launch(
        _pull.readers, tiles,
            k, k, rates, key_rows, key_pairs, slope, scratch.states, scratch.errors, upstream,
            dk, d_rates, d_key_rows, d_key_pairs, d_slope, *_strides(k, k, upstream), *sizes, KEYS=True, **shared,
        )  # fmt: skip
    _, shared = _launch(x, False, "writers")
    launch(
        _pull.writers, tiles,
        q, k, rates, pairs, into, key_pairs, scratch.states, scratch.errors, d_o, scratch.d_states,
        scratch.d_predictions, d_norms, dk, d_rates, d_into, d_mix,
        *_strides(q, k, d_o), *sizes, BOUND=bound, SOLVE=solve, **shared,
    )  # fmt: skip
    d_rates = d_lr if bound else d_rates
    d_gate = d_gate.sum(0) if len(d_gate) > 1 else d_gate[0]
    return [dq, dk, dv, d_rates, d_inverse, d_gate, d_slope, d_rows, d_pairs, d_into, d_mix, d_key_rows, d_key_pairs, d_start]  # fmt: skip


class _Scratch:
    """What backward computes again and the gradients it passes from kernel to kernel."""

    def __init__(self, x: Tiles, q: Tensor, bound: bool):
        states, tokens = (x.B, x.H, x.m, x.J, x.I, x.O), (x.B, x.H, x.T, x.O)
        self.states, self.d_states = q.new_empty(states), q.new_empty(states)
        self.errors, self.predictions, self.d_predictions = (q.new_empty(tokens) for _ in range(3))
        self.rates = q.new_empty(tokens[:3] if bound else (0,), dtype=torch.float32)


@matrix_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    slope: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    key_pairs: Tensor | None,
    stored: Tensor,
    solved: Tensor,
    d_o: Tensor,
    d_end: Tensor,
    bias: str,
) -> list[Tensor]:
    given = [q, k, v, lr, inverse, gate, slope, rows, pairs, into, mix, key_rows, key_pairs, d_end]
    return [lr.new_empty(0) if t is None else t.new_empty(t.shape) for t in given]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, bias, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.bias = bias
    ctx.present = [t is not None for t in inputs[:14]]
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, d_o: Tensor, d_end: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grads = matrix_backward(*ctx.saved_tensors, d_o, d_end, ctx.bias)
    return *(g if present else None for g, present in zip(grads, ctx.present, strict=True)), None, None


matrix.register_autograd(_backward, setup_context=_setup)

"""The scans of the perceptron as clusters of programs: CUDA that takes the arguments of the Triton kernels and gives the same tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from miras.engine.weights import LIMIT
from miras.kernels import cuda, residuals
from miras.kernels._mlp.launch import Given, Recipe, Seen
from miras.kernels._shared import biases

SLICE = 128
"""Of the hidden width, what a program has."""

TILE, THREADS = 8192, 256
"""Bytes of a tile and threads of a program, as the sources have them."""

BIASES = {biases.dot: "dot", biases.l2: "l2", biases.log_cosh: "log_cosh", biases.huber: "huber"}
"""Triton functions, and the names of what the sources have in their place."""


def scan(
    x: Given, how: Recipe, w: list[Tensor], ends: list[Tensor | None], seen: Seen, group: tuple[int, int, int]
) -> None:
    """As `miras.kernels._mlp.scan.scan`, from stacks to stacks."""
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    out = [*(cuda.Tiles(t, 64 * x.w1.shape[1], 2) for t in seen[:2]), seen.o, seen.u2, seen.squares]
    arguments = [cuda.Tiles(x.k), x.v, x.gate, x.lr, x.inverse, x.mix, x.into, *w, *ends, *strides, *out, *group]
    tiles = 11 + 4 * x.w1.shape[1]
    stack, tokens = x.w1.shape[1], x.rows.shape[-1] * 4
    bounds = (2 * _ranks(x) + stack + 9 + 2 * _ranks(x)) * tokens + 16 if x.inverse is not None else 0
    _start("scan", x, how, tiles * TILE + 2 * _sums(x) + stack * tokens + 32 + bounds, arguments)


def reverse(
    x: Given,
    how: Recipe,
    seen: Seen,
    wide: list[Tensor],
    d_w: list[Tensor],
    late: list[Tensor],
    results: list[Tensor | None],
    group: tuple[int, int, int],
) -> None:
    """As `miras.kernels._mlp.reverse.reverse`; ``results`` are gradients of z, o, keys, values and gates."""
    *hidden, d_u2, d_rates, sent = wide
    h, slope, turn, u1, hr, d_h, d_u1, d_zr = hidden
    stack = 64 * x.w1.shape[1]
    read = [
        cuda.Tiles(u1, blocks=2),
        cuda.Tiles(seen.w2, blocks=2),
        seen.o,
        cuda.Tiles(seen.u2),
        cuda.Tiles(h, blocks=2),
        cuda.Tiles(slope),
        *(cuda.Tiles(t, blocks=2) for t in (turn, hr, d_h, d_u1)),
        cuda.Tiles(d_zr),
        d_u2,
        cuda.Tiles(sent, 2 * stack),
    ]
    written = [*d_w, *(cuda.Tiles(t, stack) for t in late)]
    d_z, *others = results
    assert d_z is not None
    given = [cuda.Tiles(x.k), x.v, x.gate, x.lr, x.inverse, x.mix, x.into, seen.squares, d_rates]
    bounds = (8 + 5 * _ranks(x)) * x.rows.shape[-1] * 4 + 24 if x.inverse is not None else 0
    tiles = 23 if x.w1.shape[1] > 1 else 21
    _start(
        "reverse",
        x,
        how,
        tiles * TILE + _sums(x) + 56 + bounds,
        [*given, *read, *written, cuda.Tiles(d_z), *others, *group],
    )


def read(x: Given, how: Recipe, seen: Seen, out: Tensor | None, answer: Tensor, group: tuple[int, int, int]) -> None:
    """As `miras.kernels._mlp.read.read`."""
    given = [
        cuda.Tiles(x.q),
        cuda.Tiles(x.k),
        x.lr,
        x.rows,
        x.pairs,
        seen.squares,
        *_of_a_column(x, seen.w1, seen.w2),
        cuda.Tiles(seen.u2),
    ]
    chunks = len(x.q) * group[1]
    tiles = 7 + 2 * (4 * x.w1.shape[1] + 2)
    programs = min(chunks, cuda.processors(x.q.device))
    _start("read_queries", x, how, tiles * TILE + 48, [*given, out, answer, chunks, *group], programs)


def read_backward(
    x: Given,
    how: Recipe,
    out: Tensor | None,
    d_answer: Tensor,
    seen: Seen,
    d: Given,
    wide: list[Tensor],
    group: tuple[int, int, int],
) -> None:
    """As `miras.kernels._mlp.read_backward.read_backward`; ``out`` are answers before their norm, ``d`` gradients of rows and pairs."""
    *hidden, d_u2, d_rates, sent = wide
    h, slope, turn, u1, hr, d_h, d_u1, d_zr = (cuda.Tiles(t) for t in hidden)
    given = [cuda.Tiles(x.q), cuda.Tiles(x.k), x.lr, x.rows, x.pairs, seen.squares, out, d_answer]
    read = [*_of_a_column(x, seen.w1, seen.w2), cuda.Tiles(seen.u2), d.rows, d.pairs]
    results = [h, slope, turn, u1, hr, d_h, d_u1, d_zr, d_u2, d_rates, cuda.Tiles(sent, 128 * x.w1.shape[1])]
    shared, chunks = 27 * TILE + 8 * x.rows.shape[-1] * 4 + 32, len(x.q) * group[1]
    programs = min(chunks, cuda.processors(x.q.device))
    _start("read_backward", x, how, shared, [*given, *read, *results, chunks, *group], programs)


def query_backward(
    x: Given,
    how: Recipe,
    d_answer: Tensor,
    seen: Seen,
    wide: list[Tensor],
    near: Tensor,
    d: Given,
    group: tuple[int, int, int],
) -> None:
    """As `miras.kernels._mlp.read_backward.query_backward`; ``near`` is part of the gradient of keys, ``d`` the results."""
    *_, u1, _hr, _d_h, _d_u1, d_zr, _d_u2, d_rates, _sent = wide
    read = [
        cuda.Tiles(x.q),
        cuda.Tiles(x.k),
        x.lr,
        x.rows,
        x.pairs,
        seen.squares,
        d_answer,
        *_of_a_column(x, seen.w1),
        cuda.Tiles(u1),
        cuda.Tiles(d_zr),
    ]
    chunks, tokens = len(x.q) * group[1], x.rows.shape[-1]
    shared = (2 * (2 + x.w1.shape[1]) + 5) * TILE + 4 * tokens * 4 + 32
    programs = min(chunks, 2 * cuda.processors(x.q.device))
    _start("query_backward", x, how, shared, [*read, d.q, near, d.rows, d.pairs, d_rates, chunks, *group], programs)


def write_backward(
    x: Given,
    how: Recipe,
    seen: Seen,
    wide: list[Tensor],
    late: list[Tensor],
    d_z: Tensor,
    near: Tensor,
    d: Given,
    group: tuple[int, int, int],
) -> None:
    """As `miras.kernels._mlp.write_backward.write_backward`; ``near`` is part of the gradient of keys, ``d`` the results."""
    h, _slope, _turn, u1, *_, d_rates, _sent = wide
    stacks = [*_of_a_column(x, seen.w1, seen.w2), *(cuda.Tiles(t) for t in (seen.u2, h, u1))]
    late1, late2 = _of_a_column(x, *late)
    given = [cuda.Tiles(x.k), x.lr, x.inverse, x.into, seen.squares, *stacks, d_rates, late1, late2, cuda.Tiles(d_z)]
    chunks = len(x.q) * group[1]
    tiles, tokens = 2 * (3 + 4 * x.w1.shape[1]) + 4, x.rows.shape[-1]
    _start(
        "write_backward",
        x,
        how,
        tiles * TILE + 2 * tokens * 4 + 8 * 4 * 4 + 32,
        [*given, d.k, near, d.lr, d.inverse, d.mix, d.into, chunks, *group],
        min(chunks, cuda.processors(x.q.device)),
    )


class Room(NamedTuple):
    """What the kernels of a group leave for each other, and gradients that pass from group to group."""

    wide: list[Tensor]  # in the order of `miras.kernels._mlp.read_backward.read_backward`
    w: list[Tensor]  # gradients of stacks
    late: list[Tensor]  # of those after every chunk
    z: Tensor
    o: Tensor
    near: Tensor  # of keys, in part


def backward(
    x: Given,
    how: Recipe,
    out: Tensor | None,
    d_answer: Tensor,
    seen: Seen,
    room: Room,
    d: Given,
    group: tuple[int, int, int],
) -> None:
    """All kernels of a group after its scan; ``out`` are answers before their norm, ``d`` the results."""
    read_backward(x, how, out, d_answer, seen, d, room.wide, group)
    query_backward(x, how, d_answer, seen, room.wide, room.near, d, group)
    reverse(x, how, seen, room.wide, room.w, room.late, [room.z, room.o, room.near, d.v, d.gate], group)
    write_backward(x, how, seen, room.wide, room.late, room.z, room.near, d, group)


def _of_a_column(x: Given, *stacks: Tensor) -> list[cuda.Tiles]:
    """As kernels that go through 64 of the hidden width at a time copy them."""
    return [cuda.Tiles(t, 64 * x.w1.shape[1]) for t in stacks]


def _ranks(x: Given) -> int:
    return x.w1.shape[-1] // SLICE


def _sums(x: Given) -> int:
    return _ranks(x) * x.rows.shape[-1] * x.v.shape[-1] * 4


def _start(
    name: str,
    x: Given,
    how: Recipe,
    shared: int,
    arguments: Sequence[cuda.Argument],
    programs: int | None = None,
) -> None:
    gate = 0 if x.gate is None else 1 if x.gate.shape[-1] == 1 else 2
    source = _source(name, how, shared, x.q.dtype, x.w1.shape[1], _ranks(x), x.inverse is not None, gate)
    cuda.start(source, x.q.device, programs or len(x.q) * _ranks(x), arguments)


@lru_cache
def _source(
    name: str, how: Recipe, shared: int, dtype: torch.dtype, stacks: int, ranks: int, bound: bool, gate: int
) -> cuda.Source:
    found = residuals.recall(how.bias)
    constants = {
        "HALF": '"bf16"' if dtype == torch.bfloat16 else '"f16"',
        "BFLOAT": int(dtype == torch.bfloat16),
        "SLOT": stacks - 1,
        "RANKS": ranks,
        "ACT": how.activation + "_" * (how.activation == "tanh"),
        "BIAS": f"{BIASES[found.residual]}_residual",
        "BIAS_VJP": f"{BIASES[found.residual]}_vjp",
        "BOUND": int(bound),
        "LIMIT": f"{LIMIT!r}f",
        "NORM": int(how.norm),
        "RESIDUAL": int(how.residual),
        "GATE": gate,
        "EPS": f"{how.eps!r}f",
        "SHARED": shared,
        "C0": "0.0f",
    } | {f"C{i}": f"{c!r}f" for i, c in enumerate(found.constants)}
    files = "hopper.cuh", "functions.cuh", "pieces.cuh", f"{name}.cu"
    return cuda.Source(name, files, tuple(constants.items()), THREADS, shared)

"""The scans of the perceptron as clusters of programs: CUDA that takes the arguments of the Triton kernels and gives the same tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import _biases, cuda, residuals
from miras.kernels._mlp_launch import Given, Recipe, Seen

SLICE = 128
"""Of the hidden width, what a program has."""

TILE, STAGED, THREADS = 8192, 272, 256
"""Bytes of a tile, and of a row of a stack on its way out; and threads of a program, as the sources have them."""

BIASES = {_biases.dot: "dot", _biases.l2: "l2"}
"""Triton functions, and the names of what the sources have in their place."""


def scan(
    x: Given, how: Recipe, w: list[Tensor], ends: list[Tensor | None], seen: Seen, group: tuple[int, int, int]
) -> None:
    """As `miras.kernels._mlp_scan.scan`, from stacks to stacks."""
    stages = -(-2 * x.w1.shape[1] * x.q.shape[-1] * STAGED // 1024) * 1024
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    arguments = [x.k, x.v, x.gate, x.lr, x.mix, x.into, *w, *ends, *strides, *seen[:4], *group]
    _start("scan", x, how, 7 * TILE + stages + 2 * _sums(x) + 2 * x.rows.shape[-1] * 4 + 16, arguments)


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
    """As `miras.kernels._mlp_reverse.reverse`; ``results`` are gradients of z, o, keys, values and gates."""
    h, slope, turn, _u1, hr, d_h, d_u1, d_zr, d_u2, _rates, sent = wide
    read = [*seen[1:4], h, slope, turn, hr, d_h, d_u1, d_zr, d_u2, sent]
    arguments = [x.k, x.v, x.gate, x.lr, x.mix, x.into, *read, *d_w, *late, *results, *group]
    tiles = 23 if x.w1.shape[1] > 1 else 21
    _start("reverse", x, how, tiles * TILE + _sums(x) + 24, arguments)


def _ranks(x: Given) -> int:
    return x.w1.shape[-1] // SLICE


def _sums(x: Given) -> int:
    return _ranks(x) * x.rows.shape[-1] * x.v.shape[-1] * 4


def _start(name: str, x: Given, how: Recipe, shared: int, arguments: list[Tensor | int | None]) -> None:
    files = "hopper.cuh", "functions.cuh", "pieces.cuh", f"{name}.cu"
    constants = _constants(x, how) | {"SHARED": shared}
    source = cuda.Source(name, files, tuple(constants.items()), THREADS, shared)
    cuda.start(source, x.q.device, len(x.q) * _ranks(x), arguments)


def _constants(x: Given, how: Recipe) -> dict[str, Any]:
    found = residuals.recall(how.bias)
    bias, numbers = BIASES[found.residual], {f"C{i}": f"{c!r}f" for i, c in enumerate(found.constants)}
    return {
        "HALF": '"bf16"' if x.q.dtype == torch.bfloat16 else '"f16"',
        "BFLOAT": int(x.q.dtype == torch.bfloat16),
        "SLOT": int(x.w1.shape[1] > 1),
        "RANKS": _ranks(x),
        "ACT": how.activation + "_" * (how.activation == "tanh"),
        "BIAS": f"{bias}_residual",
        "BIAS_VJP": f"{bias}_vjp",
        "NORM": int(how.norm),
        "RESIDUAL": int(how.residual),
        "GATE": 0 if x.gate is None else 1 if x.gate.shape[-1] == 1 else 2,
        "EPS": f"{how.eps!r}f",
        "C0": "0.0f",
    } | numbers

"""The scans of the perceptron by clusters of programs on Hopper, which hand sums round through each other's shared memory.

CUDA, see `miras/kernels/cuda`. They take the arguments of the Triton kernels and give the same tensors; what they do not know
stays there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels import _biases, cuda, residuals
from miras.kernels._mlp_launch import Given, Recipe, Seen

WIDTH = 64
"""Of heads, and tokens of a chunk."""

SLICE, MOST = 128, 256
"""Of the hidden width, a program has and a cluster."""

TILE, ROW, STAGED, THREADS = 8192, 320, 272, 256
"""Bytes of a tile, of a row of sums, and of a row of a stack on its way out; and threads of a program, as the sources have them."""

BIASES = {"dot": _biases.dot, "l2": _biases.l2}


def reason(x: Given, how: Recipe) -> str | None:
    """None, or why Triton has to do it."""
    device, f = x.q.device, x.w1.shape[-1]
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "the device is not of compute capability 9.0"
    if x.q.dtype not in (torch.bfloat16, torch.float16):
        return f"operands are {x.q.dtype}"
    if not x.q.shape[-1] == x.v.shape[-1] == x.rows.shape[-1] == WIDTH or how.width not in (0, WIDTH):
        return f"heads or chunks are not of {WIDTH}"
    if f % SLICE or f > MOST:
        return f"the hidden width {f} is not {SLICE} or {MOST}"
    if x.inverse is not None or x.biases is not None or x.gains is not None or how.link.kind or how.blocks > 1:
        return "steps are bounded, or there are fast vectors, a link or blocks"
    if _bias(how) is None:
        return "the bias has no CUDA function"
    return None if cuda.compiler() is not None else "PyTorch comes without NVRTC"


def _bias(how: Recipe) -> str | None:
    residual = residuals.recall(how.bias).residual
    return next((name for name, function in BIASES.items() if function is residual), None)


def scan(
    x: Given, how: Recipe, w: list[Tensor], ends: list[Tensor | None], seen: Seen, group: tuple[int, int, int]
) -> None:
    """As `miras.kernels._mlp_scan.scan`, from stacks to stacks."""
    stages = 2 * x.w1.shape[1] * WIDTH * STAGED
    strides = [0 if t is None else t.stride(0) for t in (*w, *ends)]
    arguments = [x.k, x.v, x.gate, x.lr, x.mix, x.into, *w, *ends, *strides, *seen[:4], *group]
    _start("scan", x, how, 7 * TILE + stages + 2 * _sums(x) + 2 * WIDTH * 4 + 16, arguments)


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
    tiles = 23 if x.w1.shape[1] > 1 else 19
    _start("reverse", x, how, tiles * TILE + _sums(x) + 24, arguments)


def _sums(x: Given) -> int:
    return x.w1.shape[-1] // SLICE * WIDTH * ROW


def _start(name: str, x: Given, how: Recipe, shared: int, arguments: list[Tensor | int | None]) -> None:
    files = "hopper.cuh", "functions.cuh", "pieces.cuh", f"{name}.cu"
    source = cuda.Source(name, files, tuple(_constants(x, how).items()), THREADS, shared)
    cuda.start(source, x.q.device, len(x.q) * (x.w1.shape[-1] // SLICE), arguments)


def _constants(x: Given, how: Recipe) -> dict[str, Any]:
    numbers = {f"C{i}": f"{c!r}f" for i, c in enumerate(residuals.recall(how.bias).constants)}
    bias = _bias(how)
    return {
        "HALF": '"bf16"' if x.q.dtype == torch.bfloat16 else '"f16"',
        "BFLOAT": int(x.q.dtype == torch.bfloat16),
        "SLOT": int(x.w1.shape[1] > 1),
        "RANKS": x.w1.shape[-1] // SLICE,
        "ACT": how.activation + "_" * (how.activation == "tanh"),
        "BIAS": f"{bias}_residual",
        "BIAS_VJP": f"{bias}_vjp",
        "NORM": int(how.norm),
        "RESIDUAL": int(how.residual),
        "GATE": 0 if x.gate is None else 1 if x.gate.shape[-1] == 1 else 2,
        "EPS": f"{how.eps!r}f",
        "C0": "0.0f",
    } | numbers

"""What surrounds a memory on one GPU: the way to the heads, and norm times gate, by kernels and in PyTorch; and the layer.

    python -m benchmarks.gpu_around [--breakdown]

Beside each time stands the time in which a card of 3 TB/s moves what goes in and out. Nothing is timed before the kernels
agree with PyTorch in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import layer
from benchmarks.gpu_mlp import SHAPE, breakdown, measure, our_layer
from miras import convolution
from miras.kernels import around
from miras.testing import TOLERANCE

TAPS = 4
DTYPES = torch.bfloat16, torch.float32, torch.float32
"""Of the line, its taps and its tail under autocast."""
RATE = 3e9
"""Bytes a millisecond."""


def gate() -> None:
    """The kernels' largest error, outputs and gradients."""
    where, limit = torch.device("cuda"), TOLERANCE["kernel"][torch.bfloat16]
    for error in (
        around.heads_error(SHAPE.head_dim, TAPS, (True, True, True), where, DTYPES),
        around.gated_error(SHAPE.head_dim, where, (*DTYPES[:2], DTYPES[0])),
    ):
        assert error <= limit, error


def part(function: Callable[..., Any], shapes: list[tuple[int, ...]], *how: Any) -> Callable[[], tuple[Any, Any]]:
    """Forward, and forward and backward to all operands."""

    def cases() -> tuple[Any, Any]:
        leaves = [torch.randn(shape, device="cuda").bfloat16().requires_grad_() for shape in shapes]
        outs: Any = function(*leaves, *how)
        grads = [torch.randn_like(y) for y in ([outs] if isinstance(outs, Tensor) else outs)]

        def both() -> Any:
            y = function(*leaves, *how)
            return torch.autograd.grad([y] if isinstance(y, Tensor) else list(y), leaves, grads)

        return torch.no_grad()(lambda: function(*leaves, *how)), both

    return cases


def whole(automatic: bool) -> tuple[Any, Any]:
    """The layer with weights in bfloat16, or in float32 under autocast."""
    torch.manual_seed(0)
    module = our_layer().to("cuda", torch.float32 if automatic else torch.bfloat16)
    x = torch.randn(SHAPE.batch, SHAPE.length, SHAPE.dim, device="cuda", dtype=module.out.weight.dtype)
    cast = torch.autocast("cuda", torch.bfloat16, enabled=automatic)
    return cast(lambda: layer.forward(module, x)), cast(lambda: layer.train(module, x))


def main() -> None:
    """Prints one line a row."""
    from miras.kernels._around import ops

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--breakdown", action="store_true")
    arguments = parser.parse_args()
    gate()
    b, t, h, d = SHAPE.batch, SHAPE.length, SHAPE.heads, SHAPE.head_dim
    size = 2 * b * t * h * d / RATE  # of one bfloat16 tensor of all heads
    print(torch.cuda.get_device_name(), torch.__version__, f"B{b} T{t} H{h} D{d}", flush=True)
    lines = [(b, t, 3 * h * d), (3 * h * d, TAPS), (b, TAPS - 1, 3 * h * d)]
    answers = [(b, t, h, d), (d,), (b, t, h * d)]
    parts: dict[str, tuple[Any, Any, list[tuple[int, ...]], tuple[Any, ...], tuple[int, int]]] = {
        # reads and writes of such tensors, forward, and with backward
        "heads": (ops.heads, convolution.heads, lines, ([h, h, h], True, True, True), (6, 6 + 9)),
        "norm and gate": (ops.gated, around.slow_gated, answers, (1e-6,), (3, 3 + 5)),
    }
    for name, (kernel, slow, shapes, how, moved) in parts.items():
        print(name, *(f"{n * size:.3f} ms" for n in moved), "at least, forward and both", flush=True)
        measure(f"{name}, kernel", part(kernel, shapes, *how))
        if arguments.breakdown:
            breakdown(part(kernel, shapes, *how)()[1])
        measure(f"{name}, PyTorch", part(slow, shapes, *how))
    for automatic in (False, True):
        title = f"layer, {'autocast' if automatic else 'bfloat16'}"
        measure(f"{title}, kernels around", lambda a=automatic: whole(a))
        if arguments.breakdown:
            breakdown(whole(automatic)[1])
        with mock.patch.object(around, "on_device", lambda x: False):
            measure(f"{title}, PyTorch around", lambda a=automatic: whole(a))


if __name__ == "__main__":
    main()

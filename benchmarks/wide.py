"""Perceptrons with wide heads or long chunks, kernels against PyTorch, before kernels may run unasked: `python -m benchmarks.wide`.

Forward, and forward and backward, B4 T4096 with 1,024 channels in all. PyTorch computes in float32, as a memory does without a
kernel, and multiplies in TF32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_mlp import SPEC, measure, operands
from miras import AssociativeMemory
from miras.engine.plan import Path

CASES = {"chunks of 64": (64, 128), "chunks of 128": (128, 64), "chunks of 256": (256, 64)}
"""Tokens of a chunk and channels of a head."""


def calls(chunk: int, width: int, path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The memory on its own, along a path."""
    spec = replace(SPEC, chunk_size=chunk)
    qkv, gates, state = operands(4, 4096, 1024 // width, width, spec)
    leaves = [x.requires_grad_() for x in (*qkv, *gates.values())]
    memory = AssociativeMemory(spec, path)

    def forward() -> Tensor:
        q, k, v, *given = leaves
        return memory(q, k, v, dict(zip(gates, given, strict=True)), state)[0]

    return torch.no_grad()(forward), lambda: torch.autograd.grad(forward().sum(), leaves)


def main() -> None:
    """A line for every case and path."""
    torch.set_float32_matmul_precision("high")
    for name, (chunk, width) in CASES.items():
        for path in ("kernel", "fused", "factored"):
            measure(f"{name}, heads of {width}, {path}", partial(calls, chunk, width, path))


if __name__ == "__main__":
    main()

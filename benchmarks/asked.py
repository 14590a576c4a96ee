"""Kernels that have no peer beside PyTorch: `python -m benchmarks.asked [--only NAME ...]`.

Forward, and forward and backward, B4 T4096 with 1,024 channels in all. PyTorch computes in float32, as a memory does without a
kernel, and multiplies in TF32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_mlp import SPEC, measure, operands
from miras import AssociativeMemory, MirasSpec
from miras.engine.plan import Path


class Case(NamedTuple):
    """A memory, and channels of a head."""

    spec: MirasSpec
    width: int = 64


def matrix(**fields: Any) -> MirasSpec:
    """Without a bound on steps."""
    return MirasSpec.make(**{"architecture": "matrix", "algorithm": "momentum", "step_bound": None} | fields)


LINKED: dict[str, Any] = {"bias": "huber", "read": "anchor", "chunk_size": 64}
WINDOW = {"name": "omega", "size": 16, "inner": "momentum"}

CASES = {
    "wide, chunks of 64": Case(replace(SPEC, chunk_size=64), 128),
    "wide, chunks of 128": Case(replace(SPEC, chunk_size=128)),
    "wide, chunks of 256": Case(replace(SPEC, chunk_size=256)),
    "tanh": Case(matrix(retention="tanh", **LINKED)),
    "exponentiated": Case(matrix(retention="exponentiated", **LINKED)),
    "exponentiated, heads of 128": Case(matrix(retention="exponentiated", **LINKED), 128),
    "elastic net": Case(matrix(retention="elastic_net", **LINKED)),
    "window, matrix": Case(matrix(algorithm=WINDOW, chunk_size=48)),
    "window, matrix, heads of 128": Case(matrix(algorithm=WINDOW, chunk_size=48), 128),
    "window, perceptron": Case(replace(SPEC, algorithm=WINDOW, chunk_size=48)),
}


def calls(case: Case, path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The memory on its own, along a path."""
    qkv, gates, state = operands(4, 4096, 1024 // case.width, case.width, case.spec)
    leaves = [x.requires_grad_() for x in (*qkv, *gates.values())]
    memory = AssociativeMemory(case.spec, path)

    def forward() -> Tensor:
        q, k, v, *given = leaves
        return memory(q, k, v, dict(zip(gates, given, strict=True)), state)[0]

    return torch.no_grad()(forward), lambda: torch.autograd.grad(forward().sum(), leaves)


def main() -> None:
    """A line for every case and path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names begin so")
    only = tuple(parser.parse_args().only)
    torch.set_float32_matmul_precision("high")
    for name, case in CASES.items():
        if name.startswith(only):
            paths: tuple[Path, ...] = (
                ("kernel", "fused", "factored") if case.spec.architecture.name == "mlp" else ("kernel", "factored")
            )
            for path in paths:
                measure(f"{name}, {path}", partial(calls, case, path))


if __name__ == "__main__":
    main()

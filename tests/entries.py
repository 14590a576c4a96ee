"""Problems for entries of the zoo, as the first of their ties takes them."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from miras import MirasSpec
from miras.gates import Gate, channels
from miras.testing import Problem, problem
from miras.testing.problems import random_gate
from miras.ties import Normalised, Tie, projected

WIDTH = 6
SMALL = {"expansion": 2, "degree": 2, "size": 3}
"""Fields that set a size: enough to be generic."""


def small(spec: MirasSpec) -> MirasSpec:
    """The recurrence itself, token by token, in few numbers."""
    parts: dict[str, Any] = {}
    for axis in ("architecture", "algorithm"):
        component = getattr(spec, axis)
        have = {field.name for field in dataclasses.fields(component)}
        parts[axis] = replace(component, **{n: size for n, size in SMALL.items() if n in have})
    return replace(spec, chunk_size=1, anchor_lag=0, **parts)


def tied(
    point: MirasSpec, ties: tuple[Tie, ...], length: int, seed: int
) -> tuple[Problem, dict[str, Gate], list[dict[str, Tensor]]]:
    """A problem as the first of the ties takes it, its gates, and numbers that the ties might have learned."""
    p = problem(point, length=length, d_key=WIDTH, d_value=width(ties), seed=seed)
    if any(isinstance(tie, Normalised) for tie in ties):  # sums of positive weights
        p = replace(p, state=p.state.map(torch.abs))
    if any(tie.pairs for tie in ties):
        p = replace(p, k=p.k[..., 0, :], v=p.v[..., 0, :])
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    gates = projected(point.gates, ties)
    sizes = channels(WIDTH, WIDTH)
    drawn = {n: random_gate(gate, normal(*p.q.shape[:3], *sizes[gate.per])) for n, gate in gates.items()}
    drawn |= {n: x for n, x in p.gates.items() if n in gates and x.dim() - 3 != len(sizes[gates[n].per])}  # of pairs
    start = [tie.parameters(p.q.shape[2], WIDTH, WIDTH) for tie in ties]
    numbers = [{n: x.double() + 0.3 * normal(*x.shape) for n, x in of_one.items()} for of_one in start]
    return replace(p, v=p.v[..., :WIDTH], gates=drawn), gates, numbers


def width(ties: tuple[Tie, ...]) -> int:
    """Channels of the values behind the ties."""
    return functools.reduce(lambda d, tie: tie.width(d), ties, WIDTH)

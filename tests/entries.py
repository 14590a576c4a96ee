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


def small(spec: MirasSpec, chunk: int = 1) -> MirasSpec:
    """The recurrence in few numbers, token by token or in short chunks."""
    parts = {axis: shrunk(getattr(spec, axis)) for axis in ("architecture", "algorithm")}
    return replace(spec, chunk_size=chunk, anchor_lag=min(spec.anchor_lag, chunk - 1), **parts)


def shrunk(component: Any) -> Any:
    """The same component with small sizes, also of the components inside it."""
    sizes = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if field.name in SMALL:
            sizes[field.name] = SMALL[field.name]
        elif dataclasses.is_dataclass(value):
            sizes[field.name] = shrunk(value)
    try:
        return replace(component, **sizes)
    except ValueError:  # of a size that this component has no use for
        return component


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
    sizes = channels(WIDTH, WIDTH, len(p.state.memory))
    drawn = {n: random_gate(gate, normal(*p.q.shape[:3], *sizes[gate.per])) for n, gate in gates.items()}
    drawn |= {n: x for n, x in p.gates.items() if n in gates and x.dim() - 3 != len(sizes[gates[n].per])}  # of pairs
    start = [tie.parameters(p.q.shape[2], WIDTH, WIDTH) for tie in ties]
    numbers = [{n: x.double() + 0.3 * normal(*x.shape) for n, x in of_one.items()} for of_one in start]
    return replace(p, v=p.v[..., :WIDTH], gates=drawn), gates, numbers


def width(ties: tuple[Tie, ...]) -> int:
    """Channels of the values behind the ties."""
    return functools.reduce(lambda d, tie: tie.width(d), ties, WIDTH)

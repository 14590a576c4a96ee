"""Hypothesis strategies over the whole product of the registries. Tensors come from drawn seeds."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

import torch
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import nn

from miras.spec import AXES, MirasSpec
from miras.testing.problems import Problem, problem


def small_module(d_key: int, d_value: int) -> nn.Module:
    """A wrapped module with biases, a norm and unequal widths."""
    return nn.Sequential(nn.Linear(d_key, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, d_value))


SMALL: dict[str, Any] = {
    "expansion": 2,
    "depth": 2,
    "rank": 2,
    "steps_ns": 2,
    "iterations": 3,
    "size": 3,
    "dim": 6,
    "degree": 2,
    "limit": 3.0,
}
"""Values of fields that set a size: enough to be generic, small enough to be fast (and, for exponents, to keep digits)."""

NEEDED: dict[str, dict[str, Any]] = {"from_module": {"factory": small_module}}
"""Fields without a default."""


@st.composite
def components(draw: DrawFn, axis: str, names: tuple[str, ...] | None = None) -> Any:
    """A component of an axis, with its switches (literal and boolean fields) drawn as well."""
    cls: Any = AXES[axis][draw(st.sampled_from(names or tuple(AXES[axis])))]
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = dict(NEEDED.get(cls.name, {}))
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if typing.get_origin(hints[field.name]) is Literal:
            fields[field.name] = draw(st.sampled_from(typing.get_args(hints[field.name])))
        elif hints[field.name] is bool:
            fields[field.name] = draw(st.booleans())
    fields |= {field.name: SMALL[field.name] for field in dataclasses.fields(cls) if field.name in SMALL}
    while True:
        try:
            return cls(**fields)
        except ValueError:  # these exclude each other, or a size is of no use: drop the last one
            fields.popitem()


@st.composite
def specs(draw: DrawFn, **fixed: Any) -> MirasSpec:
    """Any compatible spec; keywords fix a field, or give a strategy for it."""
    fields: dict[str, Any] = {axis: components(axis) for axis in AXES}
    fields["chunk_size"] = st.sampled_from([1, 1, 2, 3, 5])
    fields["read"] = st.sampled_from(["after", "after", "previous", "anchor"])
    fields["step_bound"] = st.sampled_from([None, 1.0])
    fields |= fixed
    drawn = {n: draw(f) if isinstance(f, SearchStrategy) else f for n, f in fields.items()}
    drawn.setdefault("anchor_lag", draw(st.sampled_from([0, 0, 1])) if drawn["chunk_size"] > 1 else 0)
    try:
        return MirasSpec(**drawn)
    except ValueError:
        reject()


@st.composite
def problems(
    draw: DrawFn,
    spec: SearchStrategy[MirasSpec] | None = None,
    *,
    max_length: int = 9,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """A problem for a drawn spec: ragged lengths, unequal widths and several pairs a token where the spec allows them."""
    point = draw(specs() if spec is None else spec)
    length, seed = draw(st.integers(1, max_length)), draw(st.integers(0, 2**31))
    d_key, d_value = draw(st.sampled_from([(4, 4), (4, 4), (3, 5)]))
    try:
        point.architecture.shapes(d_key, d_value)
    except ValueError:  # this architecture needs equal widths
        d_key = d_value = 4
    second_moment = point.algorithm.linear_only and point.algorithm.name == "newton"
    pairs = 1 if second_moment else draw(st.sampled_from([1, 1, 1, 2]))
    return problem(point, length=length, d_key=d_key, d_value=d_value, pairs=pairs, seed=seed, dtype=dtype)

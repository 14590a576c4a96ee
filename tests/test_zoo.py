"""Every entry of the zoo equals its paper, and the zoo answers what it is asked."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import LITERALS
from literals._compare import memory, row, same, transcribed

import zoo
from miras import MirasSpec
from miras.citations import PAPERS
from miras.testing import problem
from zoo._entry import Form

seeds = st.integers(0, 2**31)
SMALL = {"expansion": 2, "degree": 2, "size": 3}
"""Fields that set a size: enough to be generic."""


def small(spec: MirasSpec, chunk: int) -> MirasSpec:
    """The recurrence in few numbers."""
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


def test_every_entry_has_a_literal():
    assert LITERALS.keys() == zoo.ENTRIES.keys()


@pytest.mark.parametrize("name", zoo.names())
@settings(max_examples=settings().max_examples // 2)  # each compares some twenty tensors
@given(length=st.integers(1, 7), seed=seeds, chunk=st.sampled_from([1, 3]))
def test_the_entry_is_its_paper(name: str, length: int, seed: int, chunk: int):
    """Answers, memory, and gradients of every input and of the start; in chunks too, where the paper has a form of them."""
    point = small(zoo.spec(name), chunk if "chunk" in inspect.signature(LITERALS[name]).parameters else 1)
    tolerance = 1e-10 if point.algorithm.direction_is_identity else 1e-8  # Newton-Schulz amplifies rounding
    p, leaves = problem(point, length=length, d_key=6, d_value=6, seed=seed).leaves()
    y, state = p.run()
    same({"y": row(y)} | memory(p, state), transcribed(p, LITERALS[name]), leaves, tolerance)


@pytest.mark.parametrize("name", zoo.names())
@pytest.mark.parametrize("form", ["paper", "recommended"])
def test_an_entry_is_a_layer(name: str, form: Form):
    """It is called, split and stepped like a `Memory`."""
    layer = zoo.load(name, dim=16, heads=2, form=form).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    y, _ = layer(x)
    assert y.shape == x.shape and y.isfinite().all()
    part, state = layer(x[:, :4])
    last, _ = layer.step(x[:, 4], state)
    torch.testing.assert_close(torch.cat([part, last[:, None]], 1), y, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_says_where_it_comes_from(name: str):
    entry = zoo.ENTRIES[name]
    assert entry.paper in PAPERS and zoo.cite(name).startswith("@misc{")
    assert entry.name == name and entry.title and entry.recurrence and entry.note.endswith((".", ""))


# --- What it is asked -----------------------------------------------------------------------------------------------


def test_names_are_matched():
    assert zoo.names("*delta*") == ["deltanet", "gated_deltanet", "deltaproduct"]


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(KeyError, match=r"no memory named 'deltanett' in the zoo; did you mean 'deltanet'\? \(have: "):
        zoo.load("deltanett", dim=16)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"chunksize": 4}, "a spec has no field 'chunksize'; did you mean 'chunk_size'"),
        ({"bias": "hubr"}, "no bias named 'hubr'; did you mean 'huber'"),
        ({"algorithm": {"max_rl": 1.0}}, "algorithm 'gd' has no field 'max_rl'; did you mean 'max_lr'"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1"),
        ({"form": "pepar"}, "form must be 'paper' or 'recommended', got 'pepar'"),
    ],
)
def test_a_wrong_override_is_one_sentence(overrides: dict[str, Any], says: str):
    with pytest.raises((KeyError, ValueError), match=says):
        zoo.spec("deltanet", **overrides)


def test_an_override_changes_what_it_names():
    point = zoo.spec("deltanet", algorithm={"max_lr": 2.0}, bias="huber", chunk_size=8)
    assert (point.algorithm.max_lr, point.bias.name, point.chunk_size) == (2.0, "huber", 8)
    assert point.retention == zoo.spec("deltanet").retention


def test_the_table_has_every_entry():
    table = zoo.table()
    assert [row.name for row in table] == zoo.names()
    assert len(table.to_markdown().splitlines()) == len(table) + 2


@pytest.mark.parametrize("name", zoo.names())
def test_neighbours_are_one_axis_away(name: str):
    near = zoo.neighbours(name)
    assert name not in near.published and all(len(axes) <= 1 for axes in near.published.values())
    assert all(name in zoo.neighbours(other).published for other in near.published)
    assert near.unexplored


@given(seed=seeds)
def test_a_random_spec_is_new_and_stable(seed: int):
    point = zoo.random(seed)
    assert point == zoo.random(seed) and point.step_bound is not None
    coordinates = {
        (s.architecture.name, s.bias.name, s.retention.name, s.algorithm.name) for s in map(zoo.spec, zoo.names())
    }
    assert (point.architecture.name, point.bias.name, point.retention.name, point.algorithm.name) not in coordinates


def test_importing_the_zoo_is_light():
    code = "import sys, miras; before = set(sys.modules); import zoo; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in out if not name.startswith("zoo")} <= {"miras.citations", "fnmatch", "random"}

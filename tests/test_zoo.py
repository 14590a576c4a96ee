"""Every entry of the zoo equals its paper, and the zoo answers what it is asked."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from entries import small, tied, width
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import LITERALS, hebbian
from literals._compare import close, memory, row, same, transcribed

import zoo
from miras import AssociativeMemory, Memory
from miras.citations import PAPERS
from miras.testing import problem
from miras.ties import Normalised, Tokens, through
from zoo._entry import Form

seeds = st.integers(0, 2**31)
SINGLE = [name for name, entry in zoo.ENTRIES.items() if entry.build is Memory]
"""Entries of one memory; those of several are in `test_zoo_modules`."""


def test_every_entry_has_a_literal():
    assert LITERALS.keys() == zoo.ENTRIES.keys()


@pytest.mark.parametrize("name", SINGLE)
@settings(max_examples=settings().max_examples // 2)  # each compares some twenty tensors
@given(length=st.integers(1, 7), seed=seeds, chunk=st.sampled_from([1, 3]))
def test_the_entry_is_its_paper(name: str, length: int, seed: int, chunk: int):
    """Answers, memory, and gradients of every input, of what its ties have learned, and of the start.

    In chunks too, where the paper has a form of them. Newton-Schulz needs no wider tolerance: rounding hardly grows through
    it. But the library's floor under the norm, 1e-14 in its square, moves a small momentum by more, so literals have it too.
    """
    ties, in_chunks = zoo.ENTRIES[name].around.ties, "chunk" in inspect.signature(LITERALS[name]).parameters
    point = small(zoo.spec(name), chunk if in_chunks else 1)
    inner, gates, numbers = tied(point, ties, length, seed)
    p, leaves = inner.leaves()
    numbers = [{n: x.requires_grad_() for n, x in of_one.items()} for of_one in numbers]
    learned = {n: x for of_one in numbers for n, x in of_one.items()}
    core = AssociativeMemory(point)
    y, state = through(ties, Tokens(p.q, p.k, p.v, p.gates), numbers, lambda x: core(*x, p.state))
    end = memory(replace(p, v=y.new_zeros(1, width(ties))), state)
    wanted = transcribed(p, LITERALS[name], gates, learned)
    same({"y": row(y)} | end, wanted, leaves | learned, 1e-10)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", hebbian.KERNELS)
@settings(max_examples=settings().max_examples // 4)
@given(length=st.integers(1, 7), seed=seeds)
def test_linear_attention_is_attention_with_a_kernel(kind: str, normalised: bool, length: int, seed: int):
    """Whatever the feature map, with the normaliser and without."""
    point = zoo.spec("linear_attention", architecture={"kind": kind})
    ties = tuple(t for t in zoo.ENTRIES["linear_attention"].around.ties if normalised or not isinstance(t, Normalised))
    p = problem(point, length=length, seed=seed).map(torch.abs)
    y, _ = through(ties, Tokens(p.q, p.k, p.v, {}), [{} for _ in ties], lambda x: AssociativeMemory(point)(*x))
    wanted, _ = hebbian.linear_attention(row(p.q), row(p.k), row(p.v), hebbian.KERNELS[kind], normalised)
    close({"y": row(y)}, {"y": torch.stack(wanted)}, 1e-12)


@pytest.mark.parametrize("depth", [3, 4])
@settings(max_examples=settings().max_examples // 4)
@given(length=st.integers(1, 7), seed=seeds)
def test_titans_may_be_deeper(depth: int, length: int, seed: int):
    point = small(zoo.spec("titans_lmm", architecture={"depth": depth}), 3)
    p, leaves = problem(point, length=length, seed=seed).leaves()
    y, state = p.run()
    same({"y": row(y)} | memory(p, state), transcribed(p, LITERALS["titans_lmm"]), leaves, 1e-10)


@pytest.mark.parametrize("name", zoo.names())
@pytest.mark.parametrize("form", ["paper", "recommended"])
def test_an_entry_is_a_layer(name: str, form: Form):
    """It is called, split and stepped like a `Memory`."""
    layer: Any = zoo.load(name, dim=16, heads=2, form=form).double()
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
    y, _ = problem(point, length=3).run()
    assert y.isfinite().all()
    coordinates = {
        (s.architecture.name, s.bias.name, s.retention.name, s.algorithm.name) for s in map(zoo.spec, zoo.names())
    }
    assert (point.architecture.name, point.bias.name, point.retention.name, point.algorithm.name) not in coordinates


def test_importing_the_zoo_is_light():
    code = "import sys, miras; before = set(sys.modules); import zoo; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in out if not name.startswith(("zoo", "miras."))} <= {"fnmatch", "random"}

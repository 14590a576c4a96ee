"""A point in the design space: what it takes, what it refuses, and that it survives being written down."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields, replace
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import miras
from miras import MirasSpec, compatible, from_module
from miras.algorithms import GD, AggMo, Momentum, Muon, Omega
from miras.architectures import MLP
from miras.biases import L2, Huber
from miras.retentions import L2Decay, Lq
from miras.spec import AXES, SCHEMA, refused
from miras.testing import components, specs

WRITABLE = tuple(name for name in AXES["architecture"] if name != "from_module")  # a function has no JSON
anything = specs(
    architecture=components("architecture", WRITABLE),
    algorithm=st.one_of(
        components("algorithm"),
        st.builds(GD, max_lr=st.floats(1e-3, 2)),
        st.builds(AggMo, betas=st.lists(st.floats(0, 0.99), min_size=1, max_size=4).map(tuple)),
        st.builds(Omega, size=st.integers(1, 5), inner=st.sampled_from([GD(), Momentum(order=2), Muon()])),
    ),
    chunk_size=st.integers(2, 64),
    step_bound=st.none() | st.floats(1e-3, 1e3),
)


@given(anything)
def test_round_trips(spec: MirasSpec):
    written = json.dumps(spec.to_dict())
    for again in (MirasSpec.from_dict(json.loads(written)), pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert again == spec and hash(again) == hash(spec)
    assert json.dumps(MirasSpec.from_dict(json.loads(written)).to_dict()) == written


@given(anything)
def test_what_is_printed_can_be_pasted_back(spec: MirasSpec):
    assert eval(repr(spec), {"MirasSpec": MirasSpec}) == spec


@pytest.mark.parametrize(("axis", "name"), [(a, n) for a, r in AXES.items() for n in r if n != "from_module"])
def test_components_can_be_pasted_back(axis: str, name: str):
    """In a session that imported the classes of all four axes."""
    scope: dict[str, Any] = {}
    for package in ("architectures", "biases", "retentions", "algorithms"):
        exec(f"from miras.{package} import *", scope)
    component = AXES[axis].build(name)
    assert eval(repr(component), scope) == component


def test_the_default_is_a_memory():
    spec = MirasSpec()
    assert (spec.architecture, spec.bias, spec.retention, spec.algorithm) == (MLP(), L2(), L2Decay(), Momentum())
    assert set(spec.gates) == {"lr", "log_momentum", "log_decay"}
    assert repr(spec) == "MirasSpec(architecture='mlp', bias='l2', retention='l2', algorithm='momentum')"


def test_names_mappings_and_objects_are_the_same():
    by_name = MirasSpec.make(architecture="matrix", bias="huber", retention="lq", algorithm="gd")
    by_mapping = MirasSpec.make(
        architecture={"name": "matrix"}, bias={"name": "huber"}, retention={"name": "lq"}, algorithm={"name": "gd"}
    )
    by_object = MirasSpec(architecture=AXES["architecture"]["matrix"](), bias=Huber(), retention=Lq(), algorithm=GD())
    assert by_name == by_mapping == by_object
    assert len({by_name, by_mapping, by_object}) == 1


def test_every_field_is_part_of_the_identity():
    """The spec is the function: what differs here differs in numbers."""
    changes = [
        {"architecture": "matrix"},
        {"bias": {"name": "l2", "half": False}},
        {"retention": {"name": "l2", "per": "key"}},
        {"algorithm": {"name": "momentum", "order": 2}},
        {"chunk_size": 32},
        {"anchor_lag": 1},
        {"read": "anchor"},
        {"step_bound": None},
    ]
    assert {name for change in changes for name in change} == {f.name for f in fields(MirasSpec)}
    assert len({MirasSpec(), *(MirasSpec.make(**change) for change in changes)}) == len(changes) + 1


def test_a_wrapped_module_round_trips_in_this_process():
    spec = MirasSpec(architecture=from_module(nn.Linear))
    assert MirasSpec.from_dict(spec.to_dict()) == spec


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": SCHEMA + 1, "new": 0}, f"schema {SCHEMA + 1}; this version of miras reads up to {SCHEMA}: upgrade"),
        ({"schema": "one"}, "schema 'one'"),
        ({"chunksize": 4}, r"a spec has no field 'chunksize' .*have: .*chunk_size"),
        ({"bias": {"name": "huber", "dleta": 1}}, "bias 'huber' has no field 'dleta'; did you mean 'delta'"),
        ({"bias": {"delta": 1}}, "a mapping for bias needs a 'name'"),
    ],
)
def test_a_wrong_mapping_is_refused(change: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        MirasSpec.from_dict(MirasSpec().to_dict() | change)


@pytest.mark.parametrize("name", ["os:system", "os.system", "builtins.exec", "__import__('os').system('true')"])
def test_a_mapping_never_names_code(name: str, monkeypatch: pytest.MonkeyPatch):
    def never(*args: Any) -> None:
        raise AssertionError("code was run")

    monkeypatch.setattr("os.system", never)
    monkeypatch.setattr("builtins.exec", never)
    for change in ({"bias": name}, {"bias": {"name": name}}):
        with pytest.raises(KeyError, match="no bias named"):
            MirasSpec.from_dict(MirasSpec().to_dict() | change)


# what combines -----------------------------------------------------------------------------------


def test_few_pairs_are_refused():
    """At most a twentieth, and each for a reason."""
    pairs = sum(len(AXES[a]) * len(AXES[b]) for a, b in combinations(AXES, 2))
    rows = refused()
    assert len(set(rows)) == len(rows) <= pairs / 20
    for left, right, reason in rows:
        assert all(repr(name.split()[1]) in reason for name in (left, right))


def test_the_table_of_refused_pairs_is_the_whole_truth():
    """Default components combine if and only if no pair of them is in the table."""
    bad = {frozenset(row[:2]) for row in refused()}
    default = {a: {n: AXES[a].build(n) for n in r if n != "from_module"} for a, r in AXES.items()}
    base = MirasSpec.make(architecture="matrix", algorithm="gd")
    for names in product(*default.values()):
        chosen = {axis: default[axis][name] for axis, name in zip(AXES, names, strict=True)}
        labels = [f"{axis} {name}" for axis, name in zip(AXES, names, strict=True)]
        point = copy.copy(base)
        for axis, component in chosen.items():  # past the constructor, which would raise
            object.__setattr__(point, axis, component)
        assert (compatible(point) is not None) == any(frozenset(pair) in bad for pair in combinations(labels, 2)), (
            labels
        )
        assert compatible(point) or point.gates is not None  # no two components want one gate in two ways


def test_a_refusal_is_the_reason():
    with pytest.raises(
        ValueError, match="'implicit' has a closed form only for a linear memory; architecture 'mlp' is not"
    ):
        MirasSpec.make(architecture="mlp", algorithm="implicit")


def test_replace_checks_again():
    with pytest.raises(ValueError, match="chunk_size"):
        replace(MirasSpec(), chunk_size=0)
    assert replace(MirasSpec(), bias="huber").bias == Huber()


def test_the_registries_are_public():
    assert [miras.architectures, miras.biases, miras.retentions, miras.algorithms] == list(AXES.values())

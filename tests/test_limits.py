"""Published recurrences, transcribed in `literal`, and the limits in which one memory becomes another (law 12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import _shared as shared
from literals import delta, hebbian, mini_batches, second_order, titans_miras
from literals._compare import close, flat, memory, row, same, transcribed
from literals._shared import Remembered

from miras import MirasSpec
from miras.architectures import FeatureMap
from miras.testing import problem

WIDTH = 6  # a layer norm of fewer channels is badly conditioned too often
seeds = st.integers(0, 2**31)
lengths = st.integers(1, 7)


def spec(**fields: Any) -> MirasSpec:
    """Token by token and without a bound, unless asked otherwise."""
    return MirasSpec.make(**{"architecture": "matrix", "algorithm": "gd", "chunk_size": 1, "step_bound": None} | fields)


L2 = {"name": "l2", "half": False}
"""The squared error without the half."""

MLP = {"name": "mlp", "expansion": 2, "eps": 1e-6}
DECAYED = {"name": "l2", "gradient_at": "decayed"}
SLOW = {"name": "gd", "max_lr": 0.1}
OMEGA = {"name": "omega", "size": 3, "max_lr": 0.1}

PUBLISHED: dict[str, tuple[MirasSpec, Callable[..., Remembered]]] = {
    "GLA": (spec(bias="dot", retention={"name": "l2", "per": "key"}), hebbian.gated_linear_attention),
    "Mamba-2": (spec(bias="dot", retention="l2"), hebbian.gated_linear_attention),
    "DeltaNet": (spec(bias="l2", retention="none"), delta.delta_net),
    "Gated DeltaNet": (spec(bias="l2", retention=DECAYED), delta.gated_delta_net),
    "KDA": (spec(bias="l2", retention=DECAYED | {"per": "key"}), delta.gated_delta_net),
    "DeltaProduct": (spec(bias="l2", retention=DECAYED, algorithm="multi_step"), delta.delta_product),
    "Longhorn": (spec(bias="l2", retention="none", algorithm="implicit"), delta.longhorn),
    "DGD": (spec(bias="l2", retention="l2", algorithm="dgd"), delta.delta_gradient_descent),
    "RLS": (spec(bias="l2", retention="none", algorithm="newton"), second_order.recursive_least_squares),
    "TTT-Linear": (
        spec(architecture={"name": "mlp", "depth": 1, "eps": 1e-6}, bias=L2, retention="none", chunk_size=4),
        partial(mini_batches.test_time_training, M=shared.ttt_linear, chunk=4),
    ),
    "one anchor for all": (
        spec(architecture=MLP, bias=L2, retention="none", chunk_size=100),
        partial(mini_batches.test_time_training, M=shared.mlp, chunk=100),
    ),
    "Titans, matrix": (
        spec(bias=L2, retention="l2", algorithm="momentum"),
        partial(titans_miras.titans, M=shared.matrix),
    ),
    "Titans, MLP": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=SLOW | {"name": "momentum"}),
        partial(titans_miras.titans, M=shared.mlp),
    ),
    "Titans, chunked": (
        spec(bias=L2, retention="l2", algorithm="momentum", chunk_size=4),
        partial(titans_miras.titans_chunked, chunk=4),
    ),
    "OmegaNet, matrix": (
        spec(architecture={"name": "feature_map", "kind": "polynomial"}, bias=L2, retention="l2", algorithm=OMEGA),
        partial(second_order.omega_net, window=3, M=lambda W, x: FeatureMap(kind="polynomial").features(x) @ W["w"]),
    ),
    "OmegaNet, MLP": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=OMEGA),
        partial(second_order.omega_net, window=3, M=shared.mlp),
    ),
    "ATLAS": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=OMEGA | {"inner": "muon", "max_lr": 0.03}),
        partial(second_order.atlas, window=3, M=shared.mlp),
    ),
    "Moneta": (
        spec(architecture=MLP, bias="lp", retention="lq", algorithm=SLOW),
        partial(titans_miras.moneta, M=shared.mlp),
    ),
    "Moneta, chunked": (
        spec(
            architecture=MLP,
            bias="lp",
            retention={"name": "lq", "link_at": "chunk"},
            algorithm=SLOW,
            chunk_size=4,
        ),
        partial(titans_miras.moneta_chunked, M=shared.mlp, chunk=4),
    ),
    "Yaad": (
        spec(architecture=MLP, bias={"name": "yaad", "half": False}, retention="l2", algorithm=SLOW),
        partial(titans_miras.yaad, M=shared.mlp),
    ),
    "Memora": (
        spec(architecture=MLP, bias=L2, retention="kl", algorithm=SLOW),
        partial(titans_miras.memora, M=shared.mlp),
    ),
    "Memora, chunked": (
        spec(architecture=MLP, bias=L2, retention="kl", algorithm=SLOW, chunk_size=4, anchor_lag=1),
        partial(titans_miras.memora_chunked, M=shared.mlp, chunk=4),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=settings().max_examples // 2)  # each compares some twenty tensors
@given(length=lengths, seed=seeds)
def test_the_spec_is_the_published_recurrence(name: str, length: int, seed: int):
    """Answers, memory, and gradients of every input and of the start."""
    point, recurrence = PUBLISHED[name]
    tolerance = 1e-10 if point.algorithm.direction_is_identity else 1e-8  # Newton-Schulz amplifies rounding
    p, leaves = problem(point, length=length, d_key=WIDTH, d_value=WIDTH, seed=seed).leaves()
    y, state = p.run()
    same({"y": row(y)} | memory(p, state), transcribed(p, recurrence), leaves, tolerance)


# --- Limits ---------------------------------------------------------------------------------------------------------

FAR = 1e9

LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = {
    "huber without outliers is l2": ({"bias": "huber"}, {"bias": "l2"}, {"delta": FAR}),
    "huber_norm without outliers is l2": ({"bias": "huber_norm"}, {"bias": "l2"}, {"delta": FAR}),
    "yaad without outliers is l2": ({"bias": "yaad"}, {"bias": "l2"}, {"delta": FAR}),
    "value_shift without shift is l2": ({"bias": "value_shift"}, {"bias": "l2"}, {"shift": 1 / FAR**2}),
    "l2 that keeps everything is none": ({"retention": "l2"}, {"retention": "none"}, {"log_decay": 0.0}),
    "decayed by nothing is the anchor": ({"retention": DECAYED}, {"retention": "none"}, {"log_decay": 0.0}),
    "lq(2) is l2": ({"retention": {"name": "lq", "q": 2.0}}, {"retention": "l2"}, {}),
    "lq(2) is l2, exact": ({"retention": {"name": "lq", "q": 2.0, "form": "exact"}}, {"retention": "l2"}, {}),
    "elastic net at zero is l2": ({"retention": "elastic_net"}, {"retention": "l2"}, {"threshold": 0.0}),
    "elastic net near zero is l2": ({"retention": "elastic_net"}, {"retention": "l2"}, {"threshold": 1e-15}),
    "proximal elastic net near zero is l2": (
        {"retention": {"name": "elastic_net", "form": "proximal"}},
        {"retention": "l2"},
        {"threshold": 1e-15},
    ),
    "momentum that forgets is gd": ({"algorithm": "momentum"}, {}, {"log_momentum": -50.0}),
    "nesterov that forgets is gd": ({"algorithm": "nesterov"}, {}, {"log_momentum": -50.0}),
    "qhm(0) is gd": ({"algorithm": {"name": "qhm", "nu": 0.0}}, {}, {}),
    "fir of one tap is gd": ({"algorithm": {"name": "fir", "taps": (1.0, 0.0)}}, {}, {}),
    "multi_step(1) is gd": ({"algorithm": {"name": "multi_step", "count": 1}}, {}, {}),
    "aggmo of one is momentum": (
        {"algorithm": {"name": "aggmo", "betas": (0.7,)}},
        {"algorithm": "momentum"},
        {"log_momentum": math.log(0.7)},
    ),
    "mesa without steps is GLA": (
        {"architecture": "matrix", "bias": "dot", "algorithm": {"name": "newton", "solver": "cg", "iterations": 0}},
        {"architecture": "matrix", "bias": "dot"},
        {},
    ),
    "chunks longer than the sequence": ({"chunk_size": 8}, {"chunk_size": 1000}, {}),
}
"""A memory, the memory it becomes, and the gates at which it does."""


@pytest.mark.parametrize("name", LIMITS)
@given(length=lengths, seed=seeds, architecture=st.sampled_from(["matrix", MLP]), chunk=st.sampled_from([1, 3]))
def test_one_memory_becomes_another(name: str, length: int, seed: int, architecture: Any, chunk: int):
    rich, plain, at = LIMITS[name]
    usual = {"architecture": architecture, "chunk_size": chunk}
    becomes(usual | rich, usual | plain, at, length, seed)


@pytest.mark.parametrize("inner", ["gd", "momentum", "nesterov", "qhm", "aggmo", "fir", "dgd"])
@pytest.mark.parametrize("architecture", ["matrix", MLP], ids=["matrix", "mlp"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_omega_of_one_is_its_inner_algorithm(inner: str, architecture: Any, chunk: int):
    usual = {"architecture": architecture, "chunk_size": chunk}
    omega = {"name": "omega", "size": 1, "inner": inner}
    becomes(usual | {"algorithm": omega}, usual | {"algorithm": inner}, {"gamma": 1.0}, length=7, seed=0)


def becomes(rich: dict[str, Any], plain: dict[str, Any], at: dict[str, float], length: int, seed: int) -> None:
    """Asserts that two memories agree where gates that one of them may not have take these values."""
    usual = {"bias": "l2", "retention": "l2", "algorithm": SLOW}
    p = problem(spec(**usual | rich), length=length, seed=seed)
    p = replace(p, gates=p.gates | {g: torch.full_like(p.gates[g], value) for g, value in at.items() if g in p.gates})
    other = problem(spec(**usual | plain), length=length, seed=seed)
    gates = {g: p.gates.get(g, torch.full_like(x, at.get(g, 0.0))) for g, x in other.gates.items()}
    start = other.state._replace(memory=p.state.memory, anchor=p.state.anchor)
    if start.slots:
        start = start._replace(slots=p.state.slots)
    (y, state), (wanted, end) = p.run(), replace(other, gates=gates, state=start).run()
    close(flat({"y": y, "W": memory(p, state)["W"]}), flat({"y": wanted, "W": memory(other, end)["W"]}), 1e-10)


@pytest.mark.parametrize("bias", ["l2", "huber", "huber_norm"])
@given(length=lengths, seed=seeds, lr=st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_a_small_implicit_step_is_explicit(bias: str, length: int, seed: int, lr: float):
    """They differ in the square of the learning rate."""
    p = problem(spec(bias=bias, retention="l2", algorithm="implicit"), length=length, seed=seed)
    p = replace(p, gates=p.gates | {"lr": torch.full_like(p.gates["lr"], lr)})
    explicit = replace(p, spec=spec(bias=bias, retention="l2"))
    close({"y": p.run()[0]}, {"y": explicit.run()[0]}, 5 * length * lr**2)

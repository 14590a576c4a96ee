"""Published recurrences, transcribed in `literal`, and the limits in which one memory becomes another (law 12)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import literal
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from miras import AssociativeMemory, MirasSpec
from miras.architectures import FeatureMap
from miras.engine.weights import read_weights
from miras.state import MemoryState
from miras.testing import Problem, problem, relative
from miras.testing.laws import probe

WIDTH = 6  # a layer norm of fewer channels is badly conditioned too often
seeds = st.integers(0, 2**31)
lengths = st.integers(1, 7)


def spec(**fields: Any) -> MirasSpec:
    """Token by token and without a bound, unless asked otherwise."""
    return MirasSpec.make(**{"architecture": "matrix", "algorithm": "gd", "chunk_size": 1, "step_bound": None} | fields)


L2 = {"name": "l2", "half": False}
"""The squared error without the half."""

MLP = {"name": "mlp", "expansion": 2}
DECAYED = {"name": "l2", "gradient_at": "decayed"}
SLOW = {"name": "gd", "max_lr": 0.1}
OMEGA = {"name": "omega", "size": 3, "max_lr": 0.1}

PUBLISHED: dict[str, tuple[MirasSpec, Callable[..., literal.Remembered]]] = {
    "GLA": (spec(bias="dot", retention={"name": "l2", "per": "key"}), literal.gated_linear_attention),
    "Mamba-2": (spec(bias="dot", retention="l2"), literal.gated_linear_attention),
    "DeltaNet": (spec(bias="l2", retention="none"), literal.delta_net),
    "Gated DeltaNet": (spec(bias="l2", retention=DECAYED), literal.gated_delta_net),
    "KDA": (spec(bias="l2", retention=DECAYED | {"per": "key"}), literal.gated_delta_net),
    "DeltaProduct": (spec(bias="l2", retention=DECAYED, algorithm="multi_step"), literal.delta_product),
    "Longhorn": (spec(bias="l2", retention="none", algorithm="implicit"), literal.longhorn),
    "DGD": (spec(bias="l2", retention="l2", algorithm="dgd"), literal.delta_gradient_descent),
    "RLS": (spec(bias="l2", retention="none", algorithm="newton"), literal.recursive_least_squares),
    "TTT-Linear": (
        spec(architecture={"name": "mlp", "depth": 1}, bias=L2, retention="none", chunk_size=4),
        partial(literal.test_time_training, M=literal.ttt_linear, chunk=4),
    ),
    "one anchor for all": (
        spec(architecture=MLP, bias=L2, retention="none", chunk_size=100),
        partial(literal.test_time_training, M=literal.mlp, chunk=100),
    ),
    "Titans, matrix": (
        spec(bias=L2, retention="l2", algorithm="momentum"),
        partial(literal.titans, M=literal.matrix),
    ),
    "Titans, MLP": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=SLOW | {"name": "momentum"}),
        partial(literal.titans, M=literal.mlp),
    ),
    "Titans, chunked": (
        spec(bias=L2, retention="l2", algorithm="momentum", chunk_size=4),
        partial(literal.titans_chunked, chunk=4),
    ),
    "OmegaNet, matrix": (
        spec(architecture={"name": "feature_map", "kind": "polynomial"}, bias=L2, retention="l2", algorithm=OMEGA),
        partial(literal.omega_net, window=3, M=lambda W, x: FeatureMap(kind="polynomial").features(x) @ W["w"]),
    ),
    "OmegaNet, MLP": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=OMEGA),
        partial(literal.omega_net, window=3, M=literal.mlp),
    ),
    "ATLAS": (
        spec(architecture=MLP, bias=L2, retention="l2", algorithm=OMEGA | {"inner": "muon", "max_lr": 0.03}),
        partial(literal.atlas, window=3, M=literal.mlp),
    ),
    "Moneta": (
        spec(architecture=MLP, bias="lp", retention="lq", algorithm=SLOW),
        partial(literal.moneta, M=literal.mlp),
    ),
    "Moneta, chunked": (
        spec(
            architecture=MLP,
            bias="lp",
            retention={"name": "lq", "link_at": "chunk"},
            algorithm=SLOW,
            chunk_size=4,
        ),
        partial(literal.moneta_chunked, M=literal.mlp, chunk=4),
    ),
    "Yaad": (
        spec(architecture=MLP, bias={"name": "yaad", "half": False}, retention="l2", algorithm=SLOW),
        partial(literal.yaad, M=literal.mlp),
    ),
    "Memora": (spec(architecture=MLP, bias=L2, retention="kl", algorithm=SLOW), partial(literal.memora, M=literal.mlp)),
    "Memora, chunked": (
        spec(architecture=MLP, bias=L2, retention="kl", algorithm=SLOW, chunk_size=4, anchor_lag=1),
        partial(literal.memora_chunked, M=literal.mlp, chunk=4),
    ),
}


Gradients = Mapping[str, Tensor | None]


def row(x: Tensor) -> Tensor:
    """``[B, T, H, ..., D]`` as the row vectors of `literal`."""
    return x.movedim(1, 0).unsqueeze(-2)


def memory(p: Problem, state: MemoryState) -> dict[str, Any]:
    """A state under the names that papers use: weights, accumulators, momenta (which they add), the inverse covariance."""
    weights = read_weights(p.spec, AssociativeMemory(p.spec).shapes(p.q.shape[-1], p.v.shape[-1]), state)
    return {"W": weights, "A": state.memory, "S": {n: -s[:, :, 0] for n, s in state.slots.items()}, **state.extra}


def transcribed(p: Problem, recurrence: Callable[..., literal.Remembered]) -> dict[str, Any]:
    """What the transcription makes of a problem: answers ``y`` and what it remembers."""
    start = memory(p, p.state)
    given = {n: row(x) for n, x in (("q", p.q), ("k", p.k), ("v", p.v))} | start
    for name, gate in p.spec.gates.items():
        x = p.gates[name].exp() if name.startswith("log_") else p.gates[name]
        given[name.removeprefix("log_")] = row(x).mT if gate.per == "key" else row(x[..., None])
    if "replay.k" in start:
        past = {"k": start["replay.k"], "v": start["replay.v"], "gamma": start["replay.gamma"][..., None]}
        given["past"] = [x.movedim(2, 0).unsqueeze(-2) for x in past.values()]
    wanted = inspect.signature(recurrence).parameters
    if "M" not in wanted:  # of a single matrix
        given |= {n: x["w"] for n, x in given.items() if isinstance(x, dict) and x}
    y, end = recurrence(**{n: x for n, x in given.items() if n in wanted})
    return {"y": torch.stack(y)} | end


def flat(named: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of one name side by side."""
    each = {n: x if isinstance(x, dict) else {"w": x} for n, x in named.items()}
    return {f"{n}/{w}": x for n, weights in each.items() for w, x in weights.items()}


def close(got: Gradients, wanted: Gradients, tolerance: float, floor: float = 1e-3) -> None:
    errors = {n: relative(got[n], x, floor) for n, x in wanted.items()}
    assert all(e <= tolerance for e in errors.values()), errors


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=settings().max_examples // 2)  # each compares some twenty tensors
@given(length=lengths, seed=seeds)
def test_the_spec_is_the_published_recurrence(name: str, length: int, seed: int):
    """Answers, memory, and gradients of every input and of the start."""
    point, recurrence = PUBLISHED[name]
    tolerance = 1e-10 if point.algorithm.direction_is_identity else 1e-8  # Newton-Schulz amplifies rounding
    p, leaves = problem(point, length=length, d_key=WIDTH, d_value=WIDTH, seed=seed).leaves()
    y, state = p.run()
    wanted = flat(transcribed(p, recurrence))
    got = flat({"y": row(y)} | memory(p, state))
    close(got, wanted, tolerance)

    def gradients(of: dict[str, Tensor]) -> Gradients:
        total = probe(of[n] for n in wanted)
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))

    exact = gradients(wanted)
    scale = max(g.norm().item() for g in exact.values() if g is not None)
    assume(scale < 1e5)  # else rounding has grown as much
    close(gradients(got), exact, tolerance, max(1e-3 * scale, 1e-6))


@given(length=lengths, seed=seeds)
def test_the_normaliser_of_linear_attention_is_one_more_value(length: int, seed: int):
    core = AssociativeMemory(spec(architecture="feature_map", bias="dot", retention="none", chunk_size=3))
    p = problem(core.spec, length=length, seed=seed)
    y, _ = core(p.q, p.k, torch.cat([p.v, torch.ones_like(p.v[..., :1])], -1), {"lr": 1.0})
    wanted, _ = literal.linear_attention(row(p.q), row(p.k), row(p.v))
    close({"y": row(y[..., :-1] / y[..., -1:])}, {"y": torch.stack(wanted)}, 1e-12)


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


@pytest.mark.parametrize("inner", ["gd", "momentum"])
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

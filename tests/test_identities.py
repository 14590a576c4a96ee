"""Entries of the zoo that become one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from entries import WIDTH
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.testing import problem, relative

Inputs = dict[str, Tensor]
"""q, k, v, and gates by name."""
NAMES = ("q", "k", "v")


def identity(x: Inputs) -> Inputs:
    return x


def gates(**values: float) -> Callable[[Inputs], Inputs]:
    """The same inputs with gates that are numbers."""
    return lambda x: x | {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def by_channel(x: Inputs) -> Inputs:
    """The decay of a head for each of its key channels."""
    return x | {"log_decay": x["log_decay"][..., None].expand(*x["log_decay"].shape, WIDTH)}


def by_entry(x: Inputs) -> Inputs:
    """The decay of a key channel for each of its entries."""
    return x | {"log_decay": x["log_decay"][..., None].expand(*x["log_decay"].shape, WIDTH)}


def by_value(x: Inputs) -> Inputs:
    """The step size and decay of a head for every value channel and entry."""
    lr = x["lr"][..., None].expand(*x["lr"].shape, WIDTH)
    return x | {"lr": lr, "log_decay": by_channel(by_channel(x))["log_decay"]}


def erase_and_write(x: Inputs) -> Inputs:
    """kappa = a k, which is not normalised, a = b / a, and k~ = b k."""
    beta, decay = x["lr"][..., None], x["log_decay"].exp()
    pairs = {"k": torch.stack([decay * x["k"], beta * x["k"]], -2), "v": torch.stack([0 * x["v"], x["v"]], -2)}
    lr = torch.stack([beta / decay, torch.ones_like(decay)], -2)
    return x | pairs | {"lr": lr, "feedback": torch.tensor([1.0, 0.0]).double().expand(*x["lr"].shape, 2)}


def proximal(x: Inputs) -> Inputs:
    """The rate b whose b / (1 + b |k|^2) is the delta rule's."""
    lr = x["lr"] / (1 - x["lr"] * x["k"].square().sum(-1))
    return x | {"lr": lr[..., None].expand(*lr.shape, WIDTH)}


def before_forgetting(x: Inputs) -> Inputs:
    """The rate a b / 2 and the value v / a: Titans measure the error before they forget, and without the half."""
    decay = x["log_decay"].exp()
    still = torch.full_like(decay, -50.0)
    return x | {"lr": x["lr"] * decay / 2, "v": x["v"] / decay[..., None], "log_momentum": still}


CUBES_TO_SQUARES = {"bias": {"p": 2.0, "smooth": "loss"}, "retention": {"q": 2.0, "link_at": "token"}}
"""Of Moneta's (3, 4) to (2, 2)."""

Point = tuple[str, dict[str, Any]]
IDENTITIES: dict[str, tuple[Point, Point, Callable[[Inputs], Inputs]]] = {
    "GLA with one decay a head is RetNet with any decays": (("gla", {}), ("retnet", {}), by_channel),
    "Mamba with one step and rate a head is Mamba-2": (("mamba", {}), ("mamba2", {}), by_value),
    "decaying fast weights that keep all value channels are GLA": (("dfw", {}), ("gla", {}), by_entry),
    "RetNet that keeps everything is linear attention": (
        ("retnet", {}),
        ("linear_attention", {"architecture": "matrix"}),
        gates(log_decay=0.0),
    ),
    "RetNet and Lightning Attention differ in a schedule": (("retnet", {}), ("lightning_attention", {}), identity),
    "HGRN2 is GLA with the key 1 - f": (("hgrn2", {}), ("gla", {}), identity),
    "DLA of depth one is linear attention with decay": (
        ("dla", {"architecture": {"name": "mlp", "depth": 1, "residual": False, "norm": False}}),
        ("retnet", {}),
        identity,
    ),
    "SWLA with a window of one is RetNet": (
        ("swla", {"algorithm": {"size": 1}}),
        ("retnet", {}),
        gates(gamma=1.0, lr=1.0),
    ),
    "Gated DeltaNet that keeps everything is DeltaNet": (
        ("gated_deltanet", {}),
        ("deltanet", {}),
        gates(log_decay=0.0),
    ),
    "KDA with one decay a head is Gated DeltaNet": (("kda", {}), ("gated_deltanet", {}), by_channel),
    "RWKV-7 with keys a k and b k is KDA": (("rwkv7", {}), ("kda", {}), erase_and_write),
    "Comba that feeds everything back is Gated DeltaNet": (("comba", {}), ("gated_deltanet", {}), gates(feedback=1.0)),
    "Comba that feeds nothing back is Mamba-2": (("comba", {}), ("mamba2", {}), gates(feedback=0.0)),
    "DeltaProduct of one step is Gated DeltaNet": (
        ("deltaproduct", {"algorithm": {"count": 1}}),
        ("gated_deltanet", {}),
        identity,
    ),
    "Longhorn is DeltaNet with a shorter step": (("longhorn", {}), ("deltanet", {}), proximal),
    "Yaad without outliers is Moneta(2, 2)": (("yaad", {}), ("moneta", CUBES_TO_SQUARES), gates(delta=1e9)),
    "Titans without momentum are Moneta(2, 2)": (
        ("titans_lmm", {"architecture": {"name": "mlp", "eps": 1e-6}}),
        ("moneta", CUBES_TO_SQUARES),
        gates(log_momentum=-50.0),
    ),
    "linear Titans without momentum are Gated DeltaNet": (
        ("titans_linear", {}),
        ("gated_deltanet", {}),
        before_forgetting,
    ),
    "Mesa without steps is Mamba-2": (("mesanet", {"algorithm": {"iterations": 0}}), ("mamba2", {}), gates(ridge=1.0)),
    "OmegaNet with a window of one has none": (
        ("omeganet", {"algorithm": {"size": 1}}),
        ("omeganet", {"algorithm": {"name": "gd", "max_lr": 0.01}}),
        gates(gamma=1.0),
    ),
    "SWDT with a window of one are DeepTransformers": (
        ("swdt", {"algorithm": {"size": 1}}),
        ("deep_transformer", {}),
        gates(gamma=1.0, log_decay=0.0),
    ),
    "TTT with readers of rate one is plain descent": (
        ("ttt_mlp", {}),
        ("ttt_mlp", {"algorithm": {"name": "gd", "max_lr": 0.1}}),
        gates(reader=1.0),
    ),
}
"""A memory, the one it becomes, and what it has to be given for what that one is given."""


@pytest.mark.parametrize("name", IDENTITIES)
@given(length=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_one_entry_becomes_another(name: str, length: int, seed: int):
    (rich, changes), (plain, plainer), inputs = IDENTITIES[name]
    p = problem(token_by_token(plain, plainer), length=length, d_key=WIDTH, d_value=WIDTH, seed=seed)
    if plain in ("retnet", "gla", "linear_attention", "lightning_attention"):  # whose learning rate is one
        p = replace(p, gates=p.gates | {"lr": torch.ones_like(p.gates["lr"])})
    wanted, end = p.run()

    given = inputs(dict(zip(NAMES, (p.q, p.k, p.v), strict=True)) | p.gates)
    core = AssociativeMemory(token_by_token(rich, changes))
    shapes = core.shapes(WIDTH, WIDTH)
    w = p.state.memory
    w = w if w.keys() == shapes.keys() else dict.fromkeys(shapes, w["w"])
    start = problem(core.spec, length=1, d_key=WIDTH, d_value=WIDTH).state._replace(memory=w, anchor=w)
    q, k, v = (given.pop(n) for n in NAMES)
    y, state = core(q, k, v, given, start)
    assert relative(y, wanted) < 1e-10
    for got, exact in zip(state.memory.values(), end.memory.values(), strict=True):
        assert relative(got, exact) < 1e-10


def token_by_token(name: str, changes: dict[str, Any]) -> MirasSpec:
    return zoo.spec(name, **changes, chunk_size=1)

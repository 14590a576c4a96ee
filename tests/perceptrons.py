"""Perceptrons whose kernels are tested, and how: against the token loop in float64, answers, states and the gradients of everything."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import zoo
from miras import MirasSpec
from miras.architectures import MLP, GatedMLP
from miras.biases import Huber, Lp, Yaad
from miras.engine.plan import Path
from miras.retentions import KLDecay, Lq
from miras.state import MemoryState
from miras.testing import rounding
from miras.testing.problems import Problem
from miras.testing.tolerances import TOLERANCE, relative
from tests.kernels import DEVICE

TITANS = MirasSpec.make(
    architecture="mlp", bias="l2", retention="l2", algorithm="momentum", chunk_size=16, step_bound=None
)
MONETA = replace(
    TITANS,
    architecture=MLP(expansion=3),
    bias=Lp(),
    retention=Lq(link_at="chunk"),
    algorithm="gd",
    step_bound=1.0,
)
PLAIN = MLP(expansion=2, norm=False)  # a norm divides by how little averages differ: float32 would be lost in it
MEMORA = replace(MONETA, architecture=PLAIN, bias="l2", retention="kl", read="anchor", step_bound=4.0)
SWIGLU = replace(TITANS, architecture=GatedMLP(expansion=2))
SPECS = {
    "titans": TITANS,
    "bounded": replace(TITANS, architecture=MLP(expansion=2), step_bound=1.0),
    "gd": replace(TITANS, architecture=MLP(expansion=1, activation="silu"), retention="none", algorithm="gd"),
    "huber": replace(TITANS, architecture=MLP(expansion=3, activation="gelu_tanh"), bias=Huber(), step_bound=1.0),
    "huber per channel": replace(TITANS, architecture=MLP(expansion=2), bias=Huber(per="value"), step_bound=1.0),
    "yaad": replace(TITANS, architecture=MLP(expansion=2), bias=Yaad(), algorithm="gd", step_bound=1.0),
    "lp": replace(TITANS, architecture=MLP(expansion=2, activation="relu2"), bias=Lp()),
    "yaad of means": replace(TITANS, architecture=MLP(expansion=2), bias=Yaad(norm="rms"), step_bound=1.0),
    "yaad of the largest": replace(
        TITANS, architecture=MLP(expansion=2), bias=Yaad(norm="max", per="value"), step_bound=1.0
    ),
    "at the anchor": replace(TITANS, architecture=MLP(expansion=2), read="anchor", step_bound=1.0),
    "moneta": MONETA,
    "moneta, mean": replace(MONETA, bias="l2", retention=Lq(q=2.5, norm="mean", link_at="chunk")),
    "moneta, no bound": replace(MONETA, architecture=MLP(expansion=2, activation="silu"), step_bound=None),
    "moneta at the anchor": replace(MONETA, retention=Lq(q=3), read="anchor", anchor_lag=3),
    "memora": MEMORA,
    "memora, lag": replace(MEMORA, retention=KLDecay(scale="size"), bias=Huber(per="value"), anchor_lag=1),
    "plain": replace(TITANS, architecture=MLP(expansion=2, norm=False, residual=False, activation="tanh"), bias="dot"),
    "biases": replace(TITANS, architecture=MLP(expansion=2, bias=True), bias=Huber(per="value")),
    "biases, gd": replace(
        TITANS, architecture=MLP(expansion=1, norm=False, bias=True), retention="none", algorithm="gd"
    ),
    "ttt": zoo.spec("ttt_mlp"),
    "ttt, decay": zoo.spec("ttt_mlp", retention="l2"),
    "ttt, bounded": zoo.spec("ttt_mlp", form="recommended"),
    "biases, bounded": replace(TITANS, architecture=MLP(expansion=2, bias=True), step_bound=1.0),
    "gains": replace(TITANS, architecture=MLP(expansion=3, affine=True), bias=Huber()),
    "gains, gd": replace(
        TITANS, architecture=MLP(expansion=2, residual=False, affine=True), bias=Huber(per="value"), algorithm="gd"
    ),
    "gains, bounded": replace(TITANS, architecture=MLP(expansion=2, affine=True), step_bound=1.0),
    "gains and biases": zoo.spec("ttt_mlp", architecture={"affine": True}),
    "gains and biases, bounded": zoo.spec("ttt_mlp", form="recommended", architecture={"affine": True}),
    "gated": SWIGLU,
    "gated, bounded": replace(
        SWIGLU,
        architecture=GatedMLP(expansion=2, residual=True, norm=True),
        bias=Huber(per="value"),
        step_bound=1.0,
    ),
    "gated, gd": replace(
        SWIGLU, architecture=GatedMLP(expansion=3, activation="gelu"), bias="dot", retention="none", algorithm="gd"
    ),
    "gated, yaad": replace(
        SWIGLU,
        architecture=GatedMLP(expansion=2, activation="gelu_tanh", norm=True),
        bias=Yaad(),
        algorithm="gd",
        step_bound=1.0,
    ),
}
HUBER = replace(TITANS, architecture=MLP(expansion=1), bias=Huber(), step_bound=1.0)
WIDE = {
    "chunks of 128": (replace(TITANS, architecture=MLP(expansion=2), chunk_size=128), 256, 16),
    "chunks of 256, huber": (replace(HUBER, chunk_size=256), 512, 16),
    "heads of 128": (replace(TITANS, architecture=MLP(expansion=1)), 32, 128),
    "heads of 128, gd": (SPECS["gd"], 32, 128),
    "heads of 128, huber": (HUBER, 32, 128),
}
"""Memory, tokens and width of a head of what `miras.kernels.mlp_wide` computes."""


def run(p: Problem, path: Path) -> dict[str, Tensor]:
    """Answers, state and gradients of a random function of both, by name."""
    p, leaves = p.leaves()
    y, state = p.run(path)
    named = {"y": y, **{n: t for n, t in state.tensors().items() if n != "phase" and not n.startswith("anchor")}}
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in named.values()]
    grads = torch.autograd.grad(list(named.values()), list(leaves.values()), weights, allow_unused=True)
    return {n: t.detach() for n, t in named.items()} | {
        f"d {n}": torch.zeros_like(t) if d is None else d for (n, t), d in zip(leaves.items(), grads, strict=True)
    }


def moved(p: Problem, dtype: torch.dtype) -> Problem:
    """The same numbers on the device, in another dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    state = MemoryState.from_tensors({n: t.to(DEVICE) for n, t in p.state.map(lambda x: x.to(wide)).tensors().items()})
    return replace(p.map(lambda x: x.to(DEVICE, dtype)), state=state)


def agree(p: Problem, dtype: torch.dtype) -> None:
    """The kernel's numbers are the token loop's, or no further from them than twice what rounded products alone cost.

    Some errors lie so near a threshold that rounding takes them to its other side, where the gradients of that value and of that
    threshold jump: two in a thousand may be any number.
    """
    got, wanted = run(moved(p, dtype), "kernel"), run(p, "reference")
    got = {n: t.cpu().double() for n, t in got.items()}
    bad = {n: e for n, e in against(wanted, got).items() if not e <= TOLERANCE["kernel"][dtype]}
    if bad and dtype != torch.float32:
        if isinstance(p.spec.bias, Huber):
            few = {n: but_for_few(got[n], wanted[n]) for n in bad.keys() & {"d v", "d gate.delta"}}
            bad = {n: e for n, e in bad.items() if not few.get(n, 1.0) <= TOLERANCE["kernel"][dtype]}
        bad = rounding.unexplained(bad, lambda: against(wanted, run(p, "factored")), dtype)
    assert not bad, bad


def against(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    return {n: relative(got[n], t) for n, t in wanted.items()}


def but_for_few(got: Tensor, wanted: Tensor, few: float = 2e-3) -> float:
    """The relative error but for the worst numbers, two in a thousand."""
    apart = (got - wanted).abs().flatten().sort().values
    return (apart[: len(apart) - int(few * len(apart))].norm() / wanted.norm()).item()

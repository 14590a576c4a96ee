"""Kernels of the perceptron against the token loop in float64: answers, states and the gradients of everything.

Without a device they run in Triton's interpreter, which computes float32 operands only.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton")

import interpreter

from miras import MirasSpec
from miras.architectures import MLP
from miras.biases import Huber, Lp, Yaad
from miras.engine.plan import Path
from miras.state import MemoryState
from miras.testing.problems import Problem, problem
from miras.testing.tolerances import TOLERANCE, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TITANS = MirasSpec.make(
    architecture="mlp", bias="l2", retention="l2", algorithm="momentum", chunk_size=16, step_bound=None
)
SPECS = {
    "titans": TITANS,
    "bounded": replace(TITANS, architecture=MLP(expansion=2), step_bound=1.0),
    "gd": replace(TITANS, architecture=MLP(expansion=1, activation="silu"), retention="none", algorithm="gd"),
    "huber": replace(TITANS, architecture=MLP(expansion=3, activation="gelu_tanh"), bias=Huber(), step_bound=1.0),
    "huber per channel": replace(TITANS, architecture=MLP(expansion=2), bias=Huber(per="value"), step_bound=1.0),
    "yaad": replace(TITANS, architecture=MLP(expansion=2), bias=Yaad(), algorithm="gd", step_bound=1.0),
    "lp": replace(TITANS, architecture=MLP(expansion=2, activation="relu2"), bias=Lp()),
    "plain": replace(TITANS, architecture=MLP(expansion=2, norm=False, residual=False, activation="tanh"), bias="dot"),
}


@pytest.fixture(autouse=True, scope="module")
def _all_at_once() -> None:
    if DEVICE == "cpu":
        interpreter.install()


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
    state = MemoryState.from_tensors({n: t.to(DEVICE) for n, t in p.state.to(wide).tensors().items()})
    return replace(p.map(lambda x: x.to(DEVICE, dtype)), state=state)


def agree(p: Problem, dtype: torch.dtype) -> None:
    """The kernel's numbers are the token loop's."""
    got, wanted = run(moved(p, dtype), "kernel"), run(p, "reference")
    errors = {n: relative(got[n].cpu().double(), t) for n, t in wanted.items()}
    bad = {n: e for n, e in errors.items() if not e <= TOLERANCE["kernel"][dtype]}
    assert not bad, bad


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_the_token_loop(name: str) -> None:
    width = 32 if name == "plain" else 16
    agree(problem(SPECS[name], length=48, d_key=16, d_value=width, batch=1, heads=1), torch.float32)

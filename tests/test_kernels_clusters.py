"""Perceptrons in clusters: which they are, and on a device, in 16 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from miras import AssociativeMemory, MirasSpec, associative, kernels
from miras.architectures import MLP
from miras.biases import Huber
from miras.kernels import KERNELS, Dims, choose, clusters, mlp, trust
from miras.kernels.table import interpreted
from miras.testing.problems import problem
from miras.testing.tolerances import relative
from tests.perceptrons import TITANS, agree, moved, run

TITANS_64 = replace(TITANS, architecture=MLP(expansion=4), chunk_size=64)

SPECS = {
    "a slot": TITANS_64,
    "no slot": replace(TITANS_64, architecture=MLP(expansion=4, activation="silu"), algorithm="gd"),
    "one program": replace(TITANS_64, architecture=MLP(expansion=2, activation="gelu_tanh")),
    "bounded": replace(TITANS_64, step_bound=1.0),
    "bounded, no slot": replace(TITANS_64, architecture=MLP(expansion=2), algorithm="gd", step_bound=1.0),
    "huber": replace(TITANS_64, architecture=MLP(expansion=2), bias=Huber(), step_bound=1.0),
    "huber per channel": replace(TITANS_64, bias=Huber(per="value"), algorithm="gd"),
    "log_cosh": replace(TITANS_64, bias="log_cosh"),
    "no norm": replace(
        TITANS_64, architecture=MLP(expansion=2, norm=False, residual=False, activation="tanh"), bias="dot"
    ),
    "relu2": replace(TITANS_64, architecture=MLP(expansion=2, activation="relu2", residual=False), algorithm="gd"),
}


@pytest.mark.parametrize("name", SPECS)
def test_comes_before_the_kernel_it_is_faster_than(name: str) -> None:
    shapes = AssociativeMemory(SPECS[name]).shapes(64, 64)
    assert [k for k in KERNELS if k.supports(SPECS[name], shapes, 1) is None] == [clusters.KERNEL, mlp.KERNEL]


def test_is_chosen_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in (clusters, mlp):
        monkeypatch.setattr(kernel, "_device", lambda _: None, raising=False)
    monkeypatch.setattr(mlp, "triton_runs", lambda *_: None)
    shapes = AssociativeMemory(TITANS_64).shapes(64, 64)

    def found(dtype: torch.dtype) -> object:
        return choose(TITANS_64, shapes, 1, Dims(64, 64), (torch.device("cuda"), dtype))

    assert found(torch.bfloat16) == found(torch.float16) == clusters.KERNEL and found(torch.float32) == mlp.KERNEL


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chunk_size": 32}, "chunks of 32 and heads of 64 x 64"),
        ({"architecture": MLP(expansion=3)}, "the hidden width 192"),
        ({"architecture": MLP(expansion=4, bias=True)}, "two matrices and nothing else"),
        ({"bias": "lp"}, "bias 'lp' has no CUDA function"),
        ({"algorithm": "aggmo"}, "slots"),
    ],
)
def test_says_why_not(change: dict[str, object], reason: str) -> None:
    spec = MirasSpec.make(**{**{n: getattr(TITANS_64, n) for n in TITANS_64.__dataclass_fields__}, **change})
    assert reason in str(clusters.supports(spec, AssociativeMemory(spec).shapes(64, 64), 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.skipif(not interpreted(), reason="needs the interpreter")
def test_needs_sixteen_bits() -> None:
    reason = clusters.fits(torch.device("cpu"), torch.float32, Dims(64, 64))
    assert reason == "products of clusters are of 16 bits"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "crowd"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.bfloat16, clusters.CROWD)], ids=str
)
@pytest.mark.parametrize("name", SPECS)
def test_agrees_on_a_device(name: str, dtype: torch.dtype, crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate at which the memory does not amplify rounding; a last chunk that is not whole; groups of chunks; the same bits twice."""
    monkeypatch.setattr(clusters, "CROWD", crowd)
    p = problem(SPECS[name], length=645, d_key=64, d_value=64)
    p = replace(p.map(lambda x: x.bfloat16().double()), gates=p.gates | {"lr": 1e-3 * p.gates["lr"]})
    agree(p, dtype)
    first, again = (run(moved(p, dtype), "kernel") for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert AssociativeMemory(p.spec, "kernel").plan(64, 64, 1, (torch.device("cuda"), dtype)).kernel == clusters.KERNEL


@pytest.mark.gpu
def test_is_the_same_as_the_other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many heads, as benchmarks have them, and not only where it was tried."""
    p = problem(TITANS_64, length=1024, d_key=64, d_value=64, batch=4, heads=16)
    p = moved(replace(p, gates=p.gates | {"lr": 1e-3 * p.gates["lr"]}), torch.bfloat16)
    found = run(p, "kernel")
    monkeypatch.setattr(kernels, "KERNELS", tuple(k for k in KERNELS if k is not clusters.KERNEL))
    associative._remembered_plan.cache_clear()
    errors = {n: relative(found[n].double(), t.double()) for n, t in run(p, "kernel").items()}
    associative._remembered_plan.cache_clear()
    assert all(e < 1e-2 for e in errors.values()), errors


@pytest.mark.gpu
def test_passes_its_trial() -> None:
    where, dims = torch.device("cuda"), Dims(64, 64)
    assert trust.error(clusters.KERNEL, TITANS_64, dims, where, torch.bfloat16, 4) < trust.WRONG / 2

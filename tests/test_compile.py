"""Compiled without a graph break, the layer and the pure core are what they are."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from miras import AssociativeMemory, Memory, MirasSpec
from miras.testing import problem, relative
from miras.testing.laws import compare

pytestmark = [
    # what dynamo does to every autograd.Function
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

KINDS: dict[str, dict[str, Any]] = {
    "exact": {"architecture": "matrix", "chunk_size": 1},
    "factored": {"architecture": {"name": "mlp", "expansion": 2}, "chunk_size": 4},
    "materialised": {"architecture": "matrix", "retention": "kl", "chunk_size": 4},
}
"""By the engine that is compiled; a compiler sees the factored one instead of the fused."""

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def forget() -> None:
    torch.compiler.reset()


def layer_is_itself(kind: str, backend: str, length: int, tolerance: float) -> None:
    """Outputs, state and gradients at a fixed length."""
    memory, x = Memory(8, heads=2, **KINDS[kind]), torch.randn(2, length, 8)
    results = []
    for call in (torch.compile(memory, fullgraph=True, backend=backend), memory):
        y, state = call(x)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
        results.append((y, state, torch.autograd.grad(loss, list(memory.parameters()))))
    (y, state, got), (wanted_y, wanted_state, wanted) = results
    compare((y, state), (wanted_y, wanted_state), tolerance, kind)
    errors = {n: relative(a, b) for (n, _), a, b in zip(memory.named_parameters(), got, wanted, strict=True)}
    assert all(e <= tolerance for e in errors.values()), errors


def core_is_itself(kind: str, backend: str, tolerance: float) -> None:
    """On one chunk, without gradients, from a state that came out of another one."""
    core = AssociativeMemory(MirasSpec.make(**KINDS[kind]))
    whole = problem(core.spec, length=8, dtype=torch.float32)
    p = replace(whole, state=whole.slice(0, 4).run()[1]).slice(4, 8)
    got = torch.compile(core.__call__, fullgraph=True, backend=backend)(p.q, p.k, p.v, p.gates, p.state)
    compare(got, p.run(), tolerance, kind)


@kinds
def test_layer(kind: str):
    layer_is_itself(kind, "aot_eager", length=4, tolerance=1e-5)


def test_core_of_a_factored_memory():
    core_is_itself("factored", "aot_eager", tolerance=1e-5)


@pytest.mark.parametrize("kind", ["exact", "materialised"])
def test_core(kind: str):
    core_is_itself(kind, "aot_eager", tolerance=1e-5)


def test_a_spec_that_nothing_has_looked_at_yet():
    spec = MirasSpec.make(**KINDS["factored"])
    p = problem(spec, length=4, dtype=torch.float32)
    core = AssociativeMemory(replace(spec))
    got = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")(p.q, p.k, p.v, p.gates, p.state)
    compare(got, p.run(), 1e-5, "factored")


@pytest.mark.nightly
@kinds
@pytest.mark.parametrize("length", [4, 18])
def test_layer_by_inductor(kind: str, length: int):
    layer_is_itself(kind, "inductor", length, tolerance=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["exact", "materialised"])
def test_core_by_inductor(kind: str):
    core_is_itself(kind, "inductor", tolerance=1e-4)

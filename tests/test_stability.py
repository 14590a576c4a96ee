"""Nothing overflows: every two choices of the design space together, at default initialisation and gates, on long sequences."""

import importlib
import pathlib
from typing import Any

import pytest
import torch

import zoo
from miras import Memory, MirasSpec
from miras.engine.plan import Path
from miras.testing import RoundedProducts
from tests.covering import FACTORS, agree, covered, covering, make, pairs
from tests.stability import inputs, overflown, trial

TOKENS = {1: 2048, 16: 16384, 64: 16384}
QUICK = {1: 32, 16: 512, 64: 1024}
"""Tokens by chunk size; one token a chunk costs as much as 64."""

ROWS = covering()
TOKEN_BY_TOKEN: dict[Path, MirasSpec] = {
    "exact": MirasSpec.make(architecture="matrix", chunk_size=1),
    "factored": make(
        ROWS[0] | {"architecture": "mlp", "bias": "l2", "retention": "l2", "algorithm": "momentum"}, chunk_size=1
    ),
    "materialised": make(
        ROWS[0] | {"architecture": "mlp", "bias": "l2", "retention": "kl", "algorithm": "gd"}, chunk_size=1
    ),
}

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def name(row: dict[str, Any]) -> str:
    return "-".join(map(str, row.values()))


def test_every_pair_of_choices_that_combines_is_covered():
    assert set().union(*map(covered, ROWS)) == pairs()
    assert len(ROWS) <= 180
    assert not agree(("architecture", "mlp"), ("algorithm", "newton"))
    assert all(list(row) == list(FACTORS) and make(row).step_bound == 1.0 for row in ROWS)


@pytest.mark.parametrize("row", ROWS[::12], ids=name)
def test_finite(row: dict[str, Any]):
    assert not overflown(trial(make(row), QUICK[row["chunk_size"]]))


@pytest.mark.nightly
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_finite_on_long_sequences(row: dict[str, Any]):
    assert not overflown(trial(make(row), TOKENS[row["chunk_size"]]))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["titans", "yaad", "moneta", "memora", "custom"])
def test_the_demos_memories_are_finite_after_100_000_tokens(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    assert not overflown(trial(importlib.import_module("demo").SPECS[name], 100_000))


@pytest.mark.parametrize("path", TOKEN_BY_TOKEN)
def test_what_a_token_recurrence_keeps_for_its_gradient_is_linear_in_tokens(path: Path):
    memory = Memory(16, heads=2, spec=TOKEN_BY_TOKEN[path], path=path)

    def kept(tokens: int) -> int:
        storages: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y, _ = memory(inputs(tokens))
        assert y.requires_grad  # and so alive: no storage was freed and counted twice
        return sum(storages.values())

    a, b, c = map(kept, (64, 128, 256))
    assert c - b <= 2.02 * (b - a)


def gradient(name: str, length: int, dim: int = 64, **architecture: Any) -> float:
    """Its norm, of a small memory as recommended that reads noise."""
    torch.manual_seed(0)
    memory = Memory(dim, heads=2, spec=zoo.spec(name, form="recommended", architecture=architecture))
    y, _ = memory(torch.randn(1, length, dim))
    gradients = torch.autograd.grad(y.square().mean(), list(memory.parameters()), allow_unused=True)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm().item()


PUBLISHED = ["titans_lmm", "moneta", "yaad", "memora"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_do_not_grow_with_the_text(name: str):
    """Behind a norm that divides by almost nothing they do."""
    assert gradient(name, 1024, 32) < 2 * gradient(name, 256, 32)
    assert gradient(name, 1024, 32, eps=1e-6) > 2 * gradient(name, 256, 32, eps=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_rounding_is_not_magnified(name: str):
    """Products in bfloat16 give the same gradient."""
    with RoundedProducts(torch.bfloat16):
        rounded = gradient(name, 256)
    assert rounded == pytest.approx(gradient(name, 256), rel=0.01)


def test_a_simplex_wants_a_blunt_norm():
    with RoundedProducts(torch.bfloat16):
        rounded = gradient("memora", 256, eps=1e-2)
    assert rounded > 1.2 * gradient("memora", 256, eps=1e-2)

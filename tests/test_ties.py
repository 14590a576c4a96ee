"""Layers with ties: what a token's inputs share changes nothing about sequences, masks and states."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import zoo
from miras import Memory, Surroundings
from miras.testing import relative
from miras.ties import Constant, Discretised, Schedule

TIED = [name for name, entry in zoo.ENTRIES.items() if entry.around.ties and entry.build is Memory]


def layer(name: str) -> tuple[Any, torch.Tensor]:
    return zoo.load(name, dim=12, heads=2).double(), torch.randn(2, 7, 12, dtype=torch.float64)


@pytest.mark.parametrize("name", TIED)
def test_masked_is_deleted(name: str):
    memory, x = layer(name)
    mask = torch.tensor([[True, False, True, True, False, True, False], [False, True, True, False, True, True, True]])
    y, state = memory(x, mask=mask)
    for row in range(2):
        alone, end = memory(x[row : row + 1, mask[row]])
        assert relative(y[row : row + 1, mask[row]], alone) < 1e-12
        for got, wanted in zip(state.select([row]).memory.values(), end.memory.values(), strict=True):
            assert relative(got, wanted) < 1e-12
    assert not y[~mask].any()


@pytest.mark.parametrize("name", TIED)
def test_packed_is_separate(name: str):
    memory, x = layer(name)
    y, state = memory(x[:1], cu_seqlens=torch.tensor([0, 3, 7]))
    assert state.batch == 2
    for a, b in ((0, 3), (3, 7)):
        assert relative(y[:, a:b], memory(x[:1, a:b])[0]) < 1e-12


@pytest.mark.parametrize("name", TIED)
def test_every_number_learns(name: str):
    """Every parameter, those of the ties included, has a gradient, and some of it is not zero."""
    memory, x = layer(name)
    y, _ = memory(x)
    y.square().sum().backward()
    for parameter, weight in memory.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.any(), parameter


@pytest.mark.parametrize("name", TIED)
def test_what_a_memory_is_given_can_be_looked_at(name: str):
    memory, x = layer(name)
    seen = memory.inspect(x)
    assert seen.keys() == {"surprise", *memory.spec.gates}
    assert str(memory.explain()).startswith("path ")


def test_retention_fades_more_slowly_in_every_head():
    memory, x = layer("retnet")
    kept = memory.inspect(x)["log_decay"].exp()
    assert torch.allclose(kept, torch.tensor([1 - 2**-5, 1 - 2**-6], dtype=torch.float64).expand_as(kept))


def test_a_layer_further_up_keeps_more():
    x = torch.randn(1, 3, 12)
    kept = []
    for depth in (0.0, 0.5):
        ties = (Schedule("lightning", depth=depth), Constant("lr", 1.0))
        memory: Any = zoo.load("lightning_attention", dim=12, heads=2, around={"ties": ties})
        kept.append(memory.inspect(x)["log_decay"])
    assert (kept[0][..., 0] == 0).all() and (kept[0][..., 1] < kept[1][..., 1]).all()


@pytest.mark.parametrize(
    ("tie", "fields", "says"),
    [
        (Schedule, {"kind": "linear"}, "kind must be"),
        (Schedule, {"depth": 1.0}, r"depth must lie in \[0, 1\)"),
        (Discretised, {"per": "value"}, "per must be"),
    ],
)
def test_a_wrong_tie_is_refused(tie: Any, fields: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        tie(**fields)


@pytest.mark.parametrize("name", zoo.names())
def test_what_surrounds_a_memory_survives_json(name: str):
    around = zoo.ENTRIES[name].around
    assert Surroundings.from_dict(json.loads(json.dumps(around.to_dict()))) == around


def test_an_unknown_field_gets_a_hint():
    with pytest.raises(ValueError, match="surroundings have no field 'convolution'"):
        Surroundings.from_dict({"convolution": 4})


def test_an_unknown_tie_gets_a_hint():
    with pytest.raises(KeyError, match="no tie named 'constnt'; did you mean 'constant'"):
        Surroundings(ties=("constnt",))  # type: ignore[arg-type]


def test_a_deep_memory_does_not_start_from_nothing():
    with pytest.raises(ValueError, match="zero_start is for a memory of one weight"):
        Memory(8, heads=1, architecture="mlp", around=Surroundings(zero_start=True))

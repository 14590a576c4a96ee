"""Passes that are recorded as a CUDA graph and replayed."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from training import losses, tiny, together

from benchmarks.books import MODELS, built
from titans.model import TitansLM
from titans.train import Model, System, train
from titans.train.parallel import World
from titans.train.passes import Objective, replayed


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_takes_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch):
    """Neither tensors made of Python's numbers nor decisions by a tensor's: what is recorded as a graph can do neither."""
    monkeypatch.setattr("miras.inputs.checkable", lambda x: False)  # as of tensors on a device
    monkeypatch.setattr("miras.memory.checkable", lambda x: False)
    monkeypatch.setattr("titans.model.checkable", lambda x: False)
    args = Namespace(dim=32, depth=2, heads=2, length=64, lr=1e-3, batch=2)
    objective = Objective(TitansLM(replace(built(name, args).build(256), window=32, segment=32)))
    tokens = torch.arange(128).view(2, 64)
    objective(tokens, None, tokens, None)[0].backward()  # what is made once

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the host was asked")

    for owner, names in {
        torch: ("tensor", "as_tensor", "from_numpy"),
        torch.Tensor: ("item", "tolist", "__bool__", "nonzero"),
    }.items():
        for n in names:
            monkeypatch.setattr(owner, n, refuse)
    objective(tokens, None, tokens, None)[0].backward()


def test_what_cannot_be_recorded_says_so(tmp_path: Path):
    config = tiny(tmp_path, order="stream", system=System(graph=True))
    with pytest.raises(ValueError, match="the device is 'cpu'"):
        replayed(config, World(0, 1, torch.device("cpu"), "fsdp"))
    with pytest.raises(ValueError, match=r"pass --system\.parallel ddp"):
        replayed(config, World(0, 2, torch.device("cuda"), "fsdp"))
    with pytest.raises(ValueError, match="cannot carry memories"):
        replayed(config, World(0, 1, torch.device("cuda"), "fsdp"))
    assert not replayed(replace(config, system=System()), World(0, 2, torch.device("cpu"), "fsdp"))


def test_a_pass_of_one_that_is_not_wrapped_puts_nothing_off():
    """Parts of a batch that a graph does not take, on one of several cards: gradients are averaged after all of them."""
    copies = World(0, 2, torch.device("cpu"), "ddp")
    module = torch.nn.Linear(2, 1)
    assert copies.wrap(module, torch.nn.ModuleList(), recorded=True) is module
    with copies.accumulating(module, last=False):
        module(torch.ones(2)).backward()
    assert module.weight.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mac", "memory"])
@pytest.mark.parametrize("micro", [None, 3])
def test_recorded_passes_change_nothing(tmp_path: Path, kind: str, micro: int | None):
    """Losses of a run whose passes are replayed, parts of unequal size among them."""
    model = Model(kind=(kind,), dim=128, depth=2, heads=2, fields={"segment": 32})
    runs = [
        tiny(tmp_path, f"graph {g}", model=model, system=System(device="cuda", micro_batch=micro, graph=g))
        for g in (False, True)
    ]
    for config in runs:
        train(config)
    plain, found = map(losses, runs)
    assert found == pytest.approx(plain, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_recorded_passes_on_two_cards_are_one(tmp_path: Path):
    """Gradients are averaged after a replay as DDP averages them, in parts too, and one card computes the same."""
    model = Model(kind=("memory",), dim=128, depth=2, heads=2)
    one = tiny(tmp_path, "one", model=model, system=System(device="cuda"))
    systems = (
        System(parallel="ddp"),
        System(parallel="ddp", graph=True),
        System(parallel="ddp", graph=True, micro_batch=1),
    )
    two = [replace(one, folder=str(tmp_path / f"{i}"), system=s) for i, s in enumerate(systems)]
    train(one)
    together(two)
    for config in two:
        assert losses(config) == pytest.approx(losses(one), rel=1e-4)  # sums of float32 in another order, 12 steps long

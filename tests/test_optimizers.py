"""Every optimizer by name: it learns and resumes exactly, or is refused with the reason."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from titans.train import load, save
from titans.train.config import Optimizer
from titans.train.optimizers import REFUSED, _classes, optimizers
from titans.train.parallel import World
from titans.train.state import capture, restore

WORLD = World(0, 1, torch.device("cpu"), "fsdp")
NAMES = sorted(dict(_classes()))


class Network(nn.Module):
    """Matrices, gains and an embedding, whose result a target decides."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.up, self.norm, self.down = nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 4)

    def loss(self) -> torch.Tensor:
        x = self.embedding(torch.arange(5))
        y = self.down(self.norm(torch.tanh(self.up(x))))
        return (y - torch.arange(20.0).view(5, 4).sin()).square().mean()


def config(name: str) -> Optimizer:
    decays = name not in ("Rprop", "LBFGS", "SparseAdam") and not name.startswith("A2Grad")
    return Optimizer(name=name, lr=1e-2, weight_decay=0.01 if decays else 0.0)


def steps(network: Network, moved: list[torch.optim.Optimizer], count: int) -> list[float]:
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers older than torch
        for _ in range(count):
            loss = network.loss()
            loss.backward()
            for o in moved:
                o.step()
                o.zero_grad()
            seen.append(loss.item())
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_resumes_or_is_refused(name: str, tmp_path: Path):
    network = Network()
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{name} of torch.* take another"):
            optimizers(network, config(name))
        return
    moved = optimizers(network, config(name))
    curve = steps(network, moved, 20)
    assert curve[-1] < curve[0]
    save(tmp_path / "state", capture(WORLD, network, moved, None))
    expected = steps(network, moved, 5)
    fresh = Network()
    other = optimizers(fresh, config(name))
    restore(WORLD, fresh, other, load(tmp_path / "state"))
    assert steps(fresh, other, 5) == expected


def test_groups():
    network = Network()
    changes = {"norm.*": {"lr": 0.5}, "*.bias": {"weight_decay": 0.3}}
    (adamw,) = optimizers(network, Optimizer(groups=changes, options={"eps": 1e-6}))
    found = {id(p): group for group in adamw.param_groups for p in group["params"]}
    by_name = {name: found[id(p)] for name, p in network.named_parameters()}
    assert [by_name[n]["weight_decay"] for n in ("up.weight", "up.bias", "embedding.weight")] == [0.1, 0.3, 0.0]
    assert by_name["norm.weight"]["lr"] == by_name["norm.weight"]["peak"] == 0.5
    assert by_name["up.weight"]["lr"] == 2e-3 and by_name["up.weight"]["betas"] == (0.9, 0.95)
    assert by_name["up.weight"]["eps"] == 1e-6


def test_muon_moves_hidden_matrices_only():
    network = Network()
    muon, adamw = optimizers(network, Optimizer(name="muon"))
    assert {tuple(p.shape) for g in muon.param_groups for p in g["params"]} == {(8, 8), (4, 8)}
    assert len(adamw.param_groups[0]["params"]) == 4


def test_groups_take_the_options_of_what_moves_them():
    changes = {"up.weight": {"momentum": 0.5}, "embedding.*": {"betas": [0.5, 0.9]}}
    muon, adamw = optimizers(Network(), Optimizer(name="muon", groups=changes))
    assert {group["momentum"] for group in muon.param_groups} == {0.5, 0.95}
    assert [0.5, 0.9] in [group["betas"] for group in adamw.param_groups]
    with pytest.raises(ValueError, match="AdamW has no option 'momentum'"):
        optimizers(Network(), Optimizer(name="muon", groups={"embedding.*": {"momentum": 0.5}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamv"}, "no optimizer named 'adamv'; did you mean 'adam"),
        ({"name": "SGDW"}, "SGDW of torch_optimizer subtracts lr"),
        ({"options": {"beta": 3}}, "AdamW has no option 'beta'; did you mean 'betas'"),
        ({"options": {"weight_decay": 0.5}}, "cannot set weight_decay; pass --optimizer.weight-decay"),
        ({"groups": {"*": {"rate": 3}}}, "AdamW has no option 'rate'"),
        ({"groups": {"nothing*": {"lr": 3}}}, "no parameter matches 'nothing"),
        ({"name": "rprop"}, "Rprop has no weight decay; pass --optimizer.weight-decay 0"),
    ],
)
def test_mistakes(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        optimizers(Network(), Optimizer(**fields))


def test_some_need_whole_matrices():
    with pytest.raises(ValueError, match=r"Adafactor needs whole matrices; pass --system.parallel ddp"):
        optimizers(Network(), Optimizer(name="adafactor"), sharded=True)

"""Two processes compute what one computes, sharded or copied, and go on from each other's checkpoints."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from training import ddp, losses, tiny, together, weights

from titans.train import Config, Optimizer, Schedule, System, train
from titans.train.parallel import World
from titans.train.trainer import _share

pytestmark = pytest.mark.slow


def without_end(config: Config, folder: Path, name: str, step: int) -> Config:
    """A copy of a run that knows nothing after a step."""
    copy = replace(config, folder=str(folder / name))
    shutil.copytree(config.folder, copy.folder)
    for path in (Path(copy.folder) / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return copy


def test_two_processes_are_one(tmp_path: Path):
    """Rounding differs, and training amplifies it; with this learning rate to less than 1e-5 in 50 steps."""
    one = tiny(tmp_path, "one", steps=50, optimizer=Optimizer(lr=2e-3))
    stream = tiny(tmp_path, "stream", order="stream", optimizer=Optimizer(lr=2e-3))
    train(one)
    train(stream)
    fsdp, copied, micro, carried = (replace(one, folder=str(tmp_path / name)) for name in ("a", "b", "c", "d"))
    micro = replace(micro, system=System(micro_batch=1), schedule=Schedule(shape="constant", warmup=2), steps=5)
    micro_alone = replace(micro, folder=str(tmp_path / "e"), system=System())
    carried = replace(stream, folder=carried.folder)
    onto_two = without_end(one, tmp_path, "onto-two", 40)
    carried_on = without_end(stream, tmp_path, "carried-on", 8)
    together([fsdp, ddp(copied), micro, carried, onto_two, carried_on])
    onto_one = without_end(fsdp, tmp_path, "onto-one", 40)
    train(onto_one)
    train(micro_alone)
    for config in (fsdp, copied, onto_two, onto_one):
        assert losses(config) == pytest.approx(losses(one), abs=1e-5)
    for config in (carried, carried_on):
        assert losses(config) == pytest.approx(losses(stream), abs=1e-5)
    assert losses(onto_one) == pytest.approx(losses(fsdp), abs=1e-6)
    assert losses(micro) == pytest.approx(losses(micro_alone), abs=1e-5)
    assert weights(one) != weights(fsdp)  # two computations, not one read twice


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["muon", "QHM", "AggMo", "Yogi", "Lamb", "AdaBelief", "SGD"])
def test_optimizers_on_shards(tmp_path: Path, name: str):
    one = tiny(tmp_path, "one", optimizer=Optimizer(name=name, lr=2e-3))
    two = replace(one, folder=str(tmp_path / "two"))
    train(one)
    together([two])
    assert losses(two) == pytest.approx(losses(one), abs=2e-3 if name == "muon" else 1e-5)  # Muon's powers are bfloat16


def test_rows_must_be_shared_equally():
    with pytest.raises(ValueError, match="3 processes cannot share 4 rows equally"):
        _share(4, World(0, 3, None, "fsdp"))  # type: ignore[arg-type]

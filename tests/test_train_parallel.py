"""Two processes compute what one computes, sharded or copied, and go on from each other's checkpoints."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import ddp, losses, tiny, together, weights

from titans.train import Config, Optimizer, System, train

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
    one = tiny(tmp_path, "one", steps=50)
    stream = tiny(tmp_path, "stream", steps=20, order="stream")
    train(one)
    train(stream)
    names = ("fsdp", "ddp", "micro", "stream2")
    fsdp, copied, micro, carried = (replace(one, folder=str(tmp_path / name)) for name in names)
    micro = replace(micro, system=System(micro_batch=1), steps=10)
    carried = replace(stream, folder=carried.folder)
    onto_two = without_end(one, tmp_path, "onto-two", 24)
    carried_on = without_end(stream, tmp_path, "carried-on", 8)
    muon = replace(one, folder=str(tmp_path / "muon"), optimizer=Optimizer(name="muon", lr=1e-2))
    together([fsdp, ddp(copied), micro, carried, onto_two, carried_on, muon])
    for config in (fsdp, copied, onto_two):
        assert losses(config) == pytest.approx(losses(one), abs=1e-5)
    assert losses(micro)[:1] == pytest.approx(losses(one)[:1], abs=1e-5)
    for config in (carried, carried_on):
        assert losses(config) == pytest.approx(losses(stream), abs=1e-5)
    onto_one = without_end(fsdp, tmp_path, "onto-one", 24)
    alone = replace(muon, folder=str(tmp_path / "muon-alone"))
    train(onto_one)
    train(alone)
    assert losses(onto_one) == pytest.approx(losses(fsdp), abs=1e-6)
    assert losses(alone) == pytest.approx(losses(muon), abs=2e-3)  # its powers of matrices are in bfloat16
    assert weights(one) != weights(fsdp)  # two computations, not one read twice


def test_rows_must_be_shared_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from titans.train.parallel import World
    from titans.train.trainer import _share

    with pytest.raises(ValueError, match="3 processes cannot share 4 rows equally"):
        _share(4, World(0, 3, None, "fsdp"))  # type: ignore[arg-type]

"""The trainer: what a run computes, and that nothing of it is ever lost."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from training import begin, losses, text, tiny, weights

import zoo.cli
from miras import Memory, MirasSpec, from_module
from miras.biases import AttentionalBias
from titans import TitansLM
from titans.cli import main
from titans.cli._flags import parse
from titans.data import Data, Stream, shards
from titans.train import (
    CheckpointError,
    Config,
    Diverged,
    Model,
    Optimizer,
    Records,
    Schedule,
    Shelf,
    System,
    load,
    pretrained,
    records,
    save,
    train,
)
from titans.train import checkpoint as checkpoints
from titans.train.passes import Objective, products
from titans.train.trainer import Trainer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run nobody interrupted."""
    torch.manual_seed(0)
    config = tiny(tmp_path_factory.mktemp("whole"))
    assert train(config).step == config.steps
    return config


def again(whole: Config, folder: Path, **changes) -> Config:
    """The same run elsewhere."""
    return replace(whole, folder=str(folder / "again"), **changes)


# what is computed --------------------------------------------------------------------------------


def test_learns(whole: Config):
    curve = losses(whole)
    assert len(curve) == whole.steps and curve[-1] < curve[0] - 0.5


@pytest.mark.parametrize("system", [System(micro_batch=1), System(micro_batch=3), System(checkpointing=True)], ids=str)
def test_how_it_is_computed_changes_nothing(whole: Config, tmp_path: Path, system: System):
    config = again(whole, tmp_path, system=system, steps=6)
    config = replace(config, schedule=Schedule(shape="constant", warmup=2))
    reference = replace(config, folder=str(tmp_path / "reference"), system=System())
    for c in (config, reference):
        train(c)
    assert losses(config) == pytest.approx(losses(reference), abs=1e-5)


def test_bfloat16_is_close(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path, precision="bfloat16")
    train(config)
    assert losses(config) == pytest.approx(losses(whole), abs=0.05)
    assert pretrained(config.folder)[0].embedding.weight.dtype == torch.float32


def test_narrow_products_are_left_as_they_were_found():
    before = torch.get_float32_matmul_precision()
    simplex = MirasSpec.make(retention="kl")
    for precision, memory, within in (
        ("bfloat16", MirasSpec(), "high"),
        ("bfloat16", simplex, before),
        ("float32", MirasSpec(), before),
    ):
        with pytest.raises(KeyError), products(precision, memory):
            assert torch.get_float32_matmul_precision() == within
            raise KeyError
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of compilers
def test_compiles(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path, system=System(compile=True))
    train(config)
    assert losses(config) == pytest.approx(losses(whole), abs=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(shape="constant", warmup=2), [0.5, 1, 1, 1, 1]),
        (Schedule(shape="wsd", warmup=0, decay=0.4, floor=0.0), [1, 1, 1, 1, 0.5]),
        (Schedule(shape="cosine", warmup=1, floor=0.0), [1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]):
    assert [schedule.factor(step, 5) for step in range(5)] == pytest.approx(expected)


def test_what_is_written_down(whole: Config):
    rows = [json.loads(line) for line in (Path(whole.folder) / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "bits_per_byte", "lr", "gradient_norm", "memory_mib", "tokens_per_second"} <= rows[0].keys()
    assert rows[0]["bits_per_byte"] == pytest.approx(rows[0]["loss"] / 0.6931472)
    assert rows[-1]["step"] == whole.steps and "valid_bits_per_byte" in rows[-1]
    assert Config.read(Path(whole.folder) / "config.json") == whole


def test_a_step_is_judged_once(whole: Config, tmp_path: Path):
    """Also the last one, and however often a run that is complete is called again."""
    config = again(whole, tmp_path, records=replace(whole.records, judge_every=4))
    outcomes = [train(config) for _ in range(3)]
    rows = [row for row in records.read(Path(config.folder)) if "valid_loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert [outcome.valid_loss for outcome in outcomes] == [rows[-1]["valid_loss"]] * 3


def test_a_judgement_that_fails_costs_no_step(whole: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(self: Trainer) -> float:
        raise ZeroDivisionError

    config = again(whole, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, "judge", failing)
        train(config)
    assert weights(config) == weights(whole)
    outcome = train(config)  # what is missing is made up for
    assert outcome.valid_loss == records.read(Path(whole.folder))[-1]["valid_loss"]


def test_a_run_on_token_shards_is_not_judged_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny(tmp_path, steps=2)
    shards(config.data)
    [folder] = (tmp_path / "cache").iterdir()
    data = replace(config.data, source=str(folder))
    assert train(replace(config, data=data)).valid_loss is None
    assert "warning: no evaluation on held-out data" in capsys.readouterr().out
    judged = train(replace(config, data=replace(data, valid=config.data.source), folder=str(tmp_path / "judged")))
    assert judged.valid_loss is not None


def test_held_out_tokens_that_the_model_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Are said to be so before the first step, instead of failing after the last one."""
    config = tiny(tmp_path, steps=2)
    data = replace(config.data, source="task:state_tracking", valid=config.data.source, length=8)
    assert train(replace(config, data=data)).valid_loss is None
    assert "no evaluation on held-out data: it has 256 tokens, the model 6; pass" in capsys.readouterr().out


# nothing is lost ---------------------------------------------------------------------------------


def killed_and_resumed(config: Config, kills: int, generator: random.Random) -> None:
    """Kills a run without warning in the middle of random steps, then lets it finish."""
    path = Path(config.folder) / "metrics.jsonl"
    for moment in sorted(generator.sample(range(1, config.steps), kills)):
        process = begin(config)
        while process.is_alive() and (not path.exists() or len(path.read_text().splitlines()) < moment):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = begin(config)
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_kill_and_resume_is_bitwise(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path)
    killed_and_resumed(config, 2, random.Random(time.time_ns()))
    assert losses(config) == losses(whole) and weights(config) == weights(whole)


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["shuffled", "stream"])
def test_ten_kills(tmp_path: Path, order: str):
    config = tiny(tmp_path, order=order, steps=60)
    train(config)
    other = replace(config, folder=str(tmp_path / "again"))
    killed_and_resumed(other, 10, random.Random(time.time_ns()))
    assert losses(other) == losses(config) and weights(other) == weights(config)


@pytest.mark.slow
def test_sigterm_saves_and_says_so(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path, records=replace(whole.records, save_every=1000))
    path = Path(config.folder) / "metrics.jsonl"
    process = begin(config)
    while process.is_alive() and (not path.exists() or len(path.read_text().splitlines()) < 3):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert (Path(config.folder) / "checkpoints" / "latest").exists()
    train(config)
    assert losses(config) == losses(whole) and weights(config) == weights(whole)


def damage(path: Path, how: str) -> str:
    """Damages a checkpoint; what is then said about it."""
    file = path / "state.safetensors"
    if how == "flipped":
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        return "is corrupt: state.safetensors has another checksum"
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
        return "is cut off: state.safetensors"
    if how == "no manifest":
        (path / "manifest.json").unlink()
        return "is incomplete: it has no manifest.json"
    if how == "unreadable":
        file.unlink()
        file.symlink_to(file.name)  # as of a disk that fails: there, and not to be read
        return "cannot be read: "
    (path / "manifest.json").write_text("{")
    return "is corrupt: its manifest cannot be read"


@pytest.mark.parametrize("how", ["flipped", "cut off", "no manifest", "no JSON", "unreadable"])
def test_damaged_checkpoints_are_skipped(whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str):
    config = again(whole, tmp_path)
    shutil.copytree(whole.folder, config.folder)
    shelf = Path(config.folder) / "checkpoints"
    (shelf / ".step-00000011.unfinished").mkdir()
    expected = damage(shelf / "step-00000012", how)
    with pytest.raises(CheckpointError, match=expected):
        load(shelf / "step-00000012")
    train(config)
    said = capsys.readouterr().out
    assert f"skipped checkpoint {shelf / 'step-00000012'}: it {expected}" in said
    assert losses(config) == losses(whole) and weights(config) == weights(whole)


def test_old_checkpoints_go(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path, records=replace(whole.records, keep=1))
    train(config)
    assert [p.name for p in (Path(config.folder) / "checkpoints").glob("step-*")] == ["step-00000012"]
    assert (Path(config.folder) / "checkpoints" / "latest").read_text() == "step-00000012\n"


@pytest.mark.parametrize(("keep", "left"), [(1, [3, 4]), (2, [1, 2, 3, 4]), (3, [0, 1, 2, 3, 4])])
def test_what_is_written_stays_and_what_is_damaged_does_not_count(tmp_path: Path, keep: int, left: list[int]):
    """A run that goes on from an earlier step passes by a later one that is damaged."""
    for step in (0, 1, 2, 4):
        Shelf(tmp_path, keep=10).put(step, {"a": torch.ones(3)})
    for step in (2, 4):
        damage(tmp_path / f"step-{step:08d}", "cut off")
    Shelf(tmp_path, keep).put(3, {"a": torch.ones(3)})
    assert [int(p.name[5:]) for p in sorted(tmp_path.glob("step-*"))] == left
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Shelf(tmp_path, 0)


def test_full_disk(whole: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A checkpoint in between may fail; the last one must not."""
    config = again(whole, tmp_path)
    write, calls = checkpoints.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) in failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    failing = {2}
    train(config)
    assert "could not be written: [Errno 28] No space left on device; the run goes on" in capsys.readouterr().out
    names = [p.name for p in sorted((Path(config.folder) / "checkpoints").iterdir())]
    assert names == ["latest", "step-00000008", "step-00000012"]
    assert losses(config) == losses(whole)
    failing = set(range(100))
    with pytest.raises(CheckpointError, match="No space left"):
        train(replace(config, folder=str(tmp_path / "third")))


def test_nothing_is_a_pickle(whole: Config):
    files = [p for p in Path(whole.folder).rglob("*") if p.is_file() and p.name != "latest"]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}
    sources = "\n".join(p.read_text() for p in (ROOT / "titans").rglob("*.py"))
    assert not re.search(r"import pickle|torch\.load\(|torch\.save\(|distributed\.checkpoint import", sources)


def test_trees_come_back(tmp_path: Path):
    tree = {
        "model": {"w": torch.randn(3)},
        "a": [1, 2.5, None, True, "x", (torch.arange(2), {0.9: torch.ones(())})],
        "b": {"empty": {}, "inf": float("inf")},
    }
    save(tmp_path / "tree", tree)
    assert repr(load(tmp_path / "tree")) == repr(tree)
    with pytest.raises(TypeError, match="a/0 is a set"):
        save(tmp_path / "other", {"a": [{1}]})
    shared = torch.ones(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save(tmp_path / "other", {"a": shared, "b": shared})
    with pytest.raises(ValueError, match="one place for a tensor; two are a/b"):
        save(tmp_path / "other", {"a": {"b": torch.ones(3)}, "a/b": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_pointers_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.publish(tmp_path / "latest", "step-00000001")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_with_all_that_is_needed(whole: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    config = again(whole, tmp_path)
    forward, calls = Objective.forward, []

    def poisoned(self, *inputs):
        loss, cache = forward(self, *inputs)
        calls.append(loss)
        if len(calls) == 7 and where == "loss":
            loss = loss * torch.nan
        elif len(calls) == 7:
            loss = loss + 0 * (self.model.norm.weight.sum() * 0).sqrt()
        return loss, cache

    monkeypatch.setattr(Objective, "forward", poisoned)
    with pytest.raises(Diverged, match=r"step 6: the loss is .* rows \[\d+, .*gradients are not finite") as error:
        train(config)
    folder = Path(config.folder) / "failure-step-00000006"
    assert str(folder) in str(error.value)
    state = load(folder)
    assert state["step"] == 6 and state["batch"]["tokens"].shape == (4, 17) and len(state["faulty"]) >= 1
    assert where == "loss" or state["faulty"] == ["norm.weight"]
    monkeypatch.undo()
    train(config)  # from the last checkpoint: the failing step has changed nothing
    assert losses(config) == losses(whole)


def diverging(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The loss of a step is not finite."""
    forward, calls = Objective.forward, []

    def poisoned(self, *inputs):
        loss, cache = forward(self, *inputs)
        calls.append(loss)
        return loss * (torch.nan if len(calls) == step + 1 else 1.0), cache

    monkeypatch.setattr(Objective, "forward", poisoned)


def test_what_failed_is_written_down_with_the_memories_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny(tmp_path, order="stream", steps=6, batch=2)
    train(replace(config, steps=4, schedule=Schedule(shape="constant", warmup=2), folder=str(tmp_path / "whole")))
    diverging(monkeypatch, 4)
    with pytest.raises(Diverged):
        train(replace(config, schedule=Schedule(shape="constant", warmup=2)))
    before = load(tmp_path / "whole" / "checkpoints" / "step-00000004")["caches"]
    failed = load(Path(config.folder) / "failure-step-00000004")
    assert failed["batch"]["continues"] and failed["caches"].keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in failed["caches"].items())


def test_a_full_disk_does_not_hide_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    diverging(monkeypatch, 1)
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(Diverged, match=r"step 1: the loss is nan .* is lost: .* No space left on device"):
        train(tiny(tmp_path))


def test_another_config_is_refused(whole: Config):
    with pytest.raises(ValueError, match=r"was started with optimizer.lr 0.01, not 0.5. Pass another --folder"):
        train(replace(whole, optimizer=Optimizer(lr=0.5)))


def test_fewer_steps_than_were_done_are_refused(whole: Config):
    """And the run's description stays what it was."""
    path = Path(whole.folder) / "config.json"
    before = path.read_text()
    with pytest.raises(ValueError, match="is at step 12, past the 5 asked for: pass more --steps, or another --folder"):
        train(replace(whole, steps=5))
    assert path.read_text() == before


def test_a_run_without_a_whole_checkpoint_says_that_it_starts_anew(
    whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = again(whole, tmp_path, steps=1)
    train(config)
    assert "is whole" not in capsys.readouterr().out
    (Path(config.folder) / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    train(config)
    assert re.search(
        r"no checkpoint in \S+again/checkpoints is whole: the run starts from step 0", capsys.readouterr().out
    )


@dataclass(frozen=True)
class Own(AttentionalBias):
    """A loss that nobody registered."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().sum(-1)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        (
            MirasSpec(bias=Own()),
            r"bias 'Own' is not registered, .* put @miras.biases.register\('a_name'\) above its class",
        ),
        (
            MirasSpec(architecture=from_module(lambda k, v: nn.Linear(k, v, bias=False))),
            "architecture 'from_module' is more than a name and numbers",
        ),
    ],
    ids=["unregistered", "function"],
)
def test_what_no_checkpoint_could_describe_is_refused(whole: Config, tmp_path: Path, memory: MirasSpec, says: str):
    """Before the first step, also in a model that is passed; a layer of it works as ever."""
    x = torch.randn(1, 8, 16)
    assert Memory(16, heads=2, spec=memory, chunk_size=4)(x)[0].shape == x.shape
    config = again(whole, tmp_path)
    with pytest.raises(ValueError, match=says):
        train(replace(config, model=replace(config.model, memory=memory)))
    with pytest.raises(ValueError, match=says):
        train(config, TitansLM("tiny", kind="memory", memory=memory))
    assert not (tmp_path / "again").exists()


def test_other_data_is_refused(whole: Config, tmp_path: Path):
    config = again(whole, tmp_path)
    shutil.copytree(whole.folder, config.folder)
    path = Path(text(tmp_path))
    path.write_text(path.read_text()[::-1])
    run = Path(config.folder) / "checkpoints" / "step-00000012" / "run.json"
    checkpoint = load(run.parent)
    moved = replace(config, data=replace(config.data, source=str(path)))
    save(run.parent, checkpoint, {"run.json": json.dumps(moved.to_dict())})
    with pytest.raises(ValueError, match="the data is not what"):
        train(moved)


# carried memories --------------------------------------------------------------------------------


def test_memory_is_carried_from_row_to_row(tmp_path: Path):
    """Without learning, the mean loss of consecutive segments is that of the whole text."""
    config = tiny(tmp_path, order="stream", batch=2, steps=4, optimizer=Optimizer(lr=0.0, weight_decay=0.0))
    train(config)
    model, _ = pretrained(config.folder)
    tokens = Stream(shards(config.data), 2, 64).shards
    lane = Stream(tokens, 2, 16).steps * 16
    rows = torch.stack([torch.from_numpy(tokens.read(r * lane, r * lane + 65)) for r in range(2)])
    with torch.no_grad():
        logits = model(rows[:, :-1]).log_softmax(-1)
    each = -logits.gather(2, rows[:, 1:, None])[..., 0].view(2, 4, 16).mean((0, 2))
    assert losses(config) == pytest.approx(each.tolist(), abs=1e-5)


def test_carried_memories_survive_a_resume(tmp_path: Path):
    config = tiny(tmp_path, order="stream", steps=10)
    train(config)
    resumed = replace(config, folder=str(tmp_path / "resumed"), system=System(micro_batch=2))
    shutil.copytree(config.folder, resumed.folder)
    shutil.rmtree(Path(resumed.folder) / "checkpoints" / "step-00000010")
    train(resumed)
    assert losses(resumed) == pytest.approx(losses(config), abs=1e-6)
    exact = replace(resumed, folder=str(tmp_path / "exact"), system=System())
    shutil.copytree(config.folder, exact.folder)
    shutil.rmtree(Path(exact.folder) / "checkpoints" / "step-00000010")
    train(exact)
    assert losses(exact) == losses(config) and weights(exact) == weights(config)


# the config and the commands ---------------------------------------------------------------------


def test_configs_come_back(tmp_path: Path):
    yaml = pytest.importorskip("yaml")
    memory = MirasSpec.make(bias="huber", retention={"name": "l2", "per": "key"})
    config = Config(
        folder="x",
        model=Model(kind=("mac", "swa"), memory=memory, dim=32),
        optimizer=Optimizer(options={"betas": [0.9, 0.99]}, groups={"*.start.*": {"lr": 1e-4}}, clip=None),
    )
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert Config.read(tmp_path / "c.json") == Config.read(tmp_path / "c.yaml") == config
    (tmp_path / "short.yaml").write_text("steps: 5\noptimizer: {lr: 1e-3}\nmodel: {memory: {bias: huber}}\n")
    short = Config.read(tmp_path / "short.yaml")
    assert short.optimizer.lr == 1e-3 and short.model.memory.bias.name == "huber"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"optimiser": {}}, "a config has no field 'optimiser'; did you mean 'optimizer'"),
        ({"data": {"lenght": 3}}, "data has no field 'lenght'; did you mean 'length'"),
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"schedule": {"shape": "linear"}}, "schedule.shape must be one of 'cosine', 'wsd', 'constant', got 'linear'"),
        ({"model": {"memory": {"bias": "hubr"}}}, "no bias named 'hubr'; did you mean 'huber'"),
        ({"model": 3}, "model must be a mapping"),
    ],
)
def test_wrong_configs_say_what_is_wrong(mapping: dict, message: str):
    with pytest.raises((ValueError, KeyError), match=message):
        Config.from_dict(mapping)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": System(micro_batch=-1)}, "system.micro_batch must be at least 1, got -1"),
        ({"records": Records(log_every=0)}, "records.log_every must be at least 1, got 0"),
        ({"records": Records(save_every=0)}, "records.save_every must be at least 1, got 0"),
        ({"records": Records(keep=0)}, "records.keep must be at least 1, got 0"),
        ({"records": Records(judge_every=-1)}, "records.judge_every must be at least 0, got -1"),
        ({"records": Records(judge_batches=0)}, "records.judge_batches must be at least 1, got 0"),
        ({"schedule": Schedule(warmup=-2)}, "schedule.warmup must be at least 0, got -2"),
        ({"schedule": Schedule(floor=-0.5)}, "schedule.floor must be at least 0, got -0.5"),
        ({"schedule": Schedule(shape="linear")}, "schedule.shape must be one of 'cosine'"),  # type: ignore[arg-type]
        ({"precision": "bf16"}, "precision must be one of 'float32', 'bfloat16', got 'bf16'"),
        ({"optimizer": Optimizer(clip=0.0)}, "optimizer.clip must be above 0, or None for no bound, got 0.0"),
        ({"optimizer": Optimizer(clip=-1.0)}, "optimizer.clip must be above 0"),
        ({"data": Data(seed=-1)}, "data.seed must be at least 0, got -1"),
        ({"model": Model(kind=(), depth=2)}, "model.kind must name at least one kind of layer"),
        ({"model": Model(heads=0)}, "model.heads must be at least 1, got 0"),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_fields_of_a_model_go_with_its_flags():
    made = Model(size="170m", fields={"attention": {"qk_norm": True}}).build(256)
    assert made.attention.heads == 16 and made.attention.qk_norm
    assert Model(heads=2, fields={"attention": {"qk_norm": True}}).build(256).attention.heads == 2
    again: list[tuple[dict, dict, str]] = [
        ({"memory": {}}, {}, "memory"),
        ({"layers": ["swa"]}, {"depth": 1}, "layers"),
        ({"attention": {"heads": 1}}, {"heads": 2}, "heads"),
    ]
    for fields, flags, named in again:
        with pytest.raises(ValueError, match=f"model.fields: '{named}' is what a flag of its own says"):
            Model(fields=fields, **flags).build(256)


def test_flags(whole: Config, tmp_path: Path):
    flags = "--steps 3 --model.kind mac swa --optimizer.clip None model.memory.bias:huber --model.memory.bias.delta 0.3"
    config = parse(Config, flags.split(), "train", whole)
    assert (config.steps, config.model.kind, config.optimizer.clip) == (3, ("mac", "swa"), None)
    assert config.model.memory.bias.delta == 0.3 and config.data == whole.data  # type: ignore[attr-defined]
    ties = ["--model.around.ties", '[{"name": "complement"}]']
    assert [tie.name for tie in parse(Config, ties, "train", whole).model.around.ties] == ["complement"]
    again = ['--optimizer.groups={"*": {"lr": 0.1}}']
    assert parse(Config, again, "train", whole).optimizer.groups == {"*": {"lr": 0.1}}


def test_commands(whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", whole.folder, "--prompt", "memory ", "--length", "5"]) == 0
    assert capsys.readouterr().out.startswith("memory ")
    assert main(["plot", whole.folder, "--out", "curve.svg", "--smooth", "3"]) == 0
    assert (tmp_path / "curve.svg").read_text().count("<svg") == 1
    assert main(["plot", whole.folder, "--metric", "nothing"]) == 2
    assert "no run has the metric 'nothing' (have: bits_per_byte" in capsys.readouterr().err
    assert main(["generate", "nowhere"]) == 2
    assert main(["train", "--folder", "x", "--size", "huge"]) == 2
    assert "no size 'huge'" in capsys.readouterr().err
    assert main(["train", "--config"]) == 2
    assert zoo.cli.main(["train", "--preset", "yad"]) == 2
    assert "no published memory named 'yad'; did you mean 'yaad'" in capsys.readouterr().err
    assert main(["train", "--preset", "yaad"]) == 2
    assert "the installed command does: miras train --preset yaad" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert re.search(r"train +train a model", capsys.readouterr().out)


@pytest.mark.slow
def test_first_step_comes_soon(tmp_path: Path):
    """From a cold start of the interpreter, in seconds of a processor, whatever else the machine is doing."""
    config = tiny(tmp_path, steps=1, records=Records(log_every=1, quiet=True))
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "titans", "train", "--config", str(tmp_path / "c.json")], cwd=ROOT, check=True
    )
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 15


def test_published_memories_train(whole: Config, tmp_path: Path):
    (tmp_path / "c.json").write_text(json.dumps(again(whole, tmp_path, steps=2).to_dict()))
    assert zoo.cli.main(["train", "--config", str(tmp_path / "c.json"), "--preset", "gated_deltanet"]) == 0
    model, folder = pretrained(tmp_path / "again")
    assert model.config.memory == zoo.spec("gated_deltanet")
    assert Config.read(folder / "run.json").model.around == zoo.ENTRIES["gated_deltanet"].around


def test_records_go_to_tensorboard(whole: Config, tmp_path: Path):
    pytest.importorskip("tensorboard")
    train(again(whole, tmp_path, steps=2, records=replace(whole.records, tensorboard=True)))
    assert list((tmp_path / "again" / "tensorboard").iterdir())


def test_records_are_sent_to_the_end(whole: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is sent to is closed, so that no row waits in it, and the next run in this process is another one."""
    sent: list[str] = []

    class Sink:
        def __init__(self, *folder: str, purge_step: int = 0):
            self.add_scalar = self.log = lambda *row, **step: sent.append("row")
            self.close = self.finish = lambda: sent.append("end")

    board, weights_and_biases = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    board.SummaryWriter = Sink  # type: ignore[attr-defined]
    weights_and_biases.init = lambda **options: Sink()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", weights_and_biases)
    for sink in ({"tensorboard": True}, {"wandb": "project"}):
        sent.clear()
        train(replace(whole, steps=2, folder=str(tmp_path / next(iter(sink))), records=replace(whole.records, **sink)))
        assert len(sent) > 2 and sent.count("end") == 1 and sent[-1] == "end"


def test_models_of_ones_own_are_not_built(whole: Config, tmp_path: Path):
    """One that no config describes has no ``config.json`` in its checkpoints."""
    config = again(whole, tmp_path, steps=1)
    train(config)
    checkpoint = pretrained(config.folder)[1]
    tree = load(checkpoint)
    save(checkpoint, tree, {"run.json": (checkpoint / "run.json").read_text()})
    with pytest.raises(ValueError, match=r"a model of your own, which no config describes: load its weights with"):
        pretrained(config.folder)

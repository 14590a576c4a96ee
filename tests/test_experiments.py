"""Declared experiments: nothing is run twice, what is interrupted goes on, and the report says what was measured."""

import csv
import json
import math
import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from titans import TitansLM
from titans.cli import main
from titans.eval import Interval
from titans.experiments import (
    EXPERIMENTS,
    MEMORIES,
    MODELS,
    SCALES,
    Axes,
    Cell,
    Judge,
    Options,
    Outliers,
    Point,
    Right,
    Trained,
    model,
    report,
    run,
    sweep,
)
from titans.experiments._forecast import Forecasting
from titans.tasks import TASKS, Forecast
from titans.train import Config, Data, Records, train
from titans.train.trainer import Trainer

TINY = SCALES["tiny"]
TOY = replace(TINY, dim=8, depth=1, heads=1, length=16, batch=2, steps=5, seeds=1, examples=4, factor=2)


@dataclass(frozen=True, kw_only=True)
class Counted(Cell):
    """Writes down that it ran, and fails if there is a file that says so."""

    def run(self, folder: Path, device: str) -> list[Point]:
        log = folder.parent / "runs"
        log.write_text(f"{log.read_text() if log.exists() else ''}{self.x}\n")
        if (folder.parent / f"fail-{self.x}").exists():
            raise RuntimeError("told to")
        return [self.point((float(self.seed), math.nan, math.nan))]


CELLS = [Counted(panel="p", series="s", x=x, seed=seed) for x in ("a", "b") for seed in (0, 1)]


def test_finished_cells_are_skipped_and_failed_ones_tried_again(tmp_path: Path):
    (tmp_path / "fail-b").touch()
    said: list[str] = []
    outcome = run(CELLS, tmp_path, ["cpu"], said.append)
    assert [p.x for p in outcome.points] == ["a", "a"] and len(outcome.failed) == 2
    assert "told to" in said[-1] and "told to" in (tmp_path / f"{CELLS[3].key}.error").read_text()
    (tmp_path / "fail-b").unlink()
    (tmp_path / f".{CELLS[2].key}.unfinished").write_text("{")  # as a crash leaves it
    outcome = run(CELLS, tmp_path, ["cpu"], said.append)
    assert [(p.x, p.seed) for p in outcome.points] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)] and not outcome.failed
    assert (tmp_path / "runs").read_text().split() == ["a", "a", "b", "b", "b", "b"]
    run(CELLS, tmp_path, ["cpu"], said.append)
    assert "4 of 4 cells are done" in said[-1] and len((tmp_path / "runs").read_text().split()) == 6


def test_keys_differ_where_cells_do():
    config = Config(steps=5)
    cells: list[Cell] = [*CELLS, Outliers(panel="p", series="l2", x=0, seed=0, share=0.1)]
    cells += [
        Trained(panel="p", series="s", x="a", seed=0, config=replace(config, steps=n), judge=Right()) for n in (5, 6)
    ]
    cells += [Trained(panel="p", series="s", x="a", seed=0, config=config, judge=Right(examples=3))]
    assert len({cell.key for cell in cells}) == len(cells)
    assert replace(CELLS[0]).key == CELLS[0].key and json.dumps(cells[-1].to_dict())


def trained() -> Trained:
    data = Data(source='task:{"name": "mqar", "tokens": 32, "pairs": 2}', length=16, batch=2)
    config = Config(steps=5, model=model("lmm", TOY), data=data, records=Records(quiet=True, save_every=1))
    return Trained(panel="p", series="s", x=1, seed=3, config=config, judge=Right(examples=4, lengths=(16, 32)))


@dataclass(frozen=True)
class Narrow(Judge):
    """Whether products are in bfloat16 while it measures."""

    def measure(self, model: TitansLM, config: Config) -> list[tuple[float | str | None, Interval]]:
        return [(None, Interval(float(torch.is_autocast_enabled("cpu")), math.nan, math.nan))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_judged_in_the_precision_of_the_training(tmp_path: Path, precision: Literal["float32", "bfloat16"]):
    cell = trained()
    [point] = replace(cell, config=replace(cell.config, precision=precision), judge=Narrow()).run(tmp_path, "cpu")
    assert point.value == (precision == "bfloat16") and not torch.is_autocast_enabled("cpu")


def test_a_stopped_cell_has_not_failed(tmp_path: Path):
    """Nor does the next one begin: the sweep was told to end."""

    @dataclass(frozen=True, kw_only=True)
    class Stopped(Counted):
        def run(self, folder: Path, device: str) -> list[Point]:
            raise InterruptedError("stopped by SIGTERM")

    with pytest.raises(InterruptedError, match="SIGTERM"):
        run([Stopped(panel="p", series="s", x="a", seed=0), *CELLS], tmp_path, ["cpu"], lambda text: None)
    assert not list(tmp_path.glob("*.error")) and not (tmp_path / "runs").exists()


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after three of five steps, it takes the two that are missing, and measures what it would have measured."""
    expected = run([trained()], tmp_path / "whole", ["cpu"], lambda text: None).points
    steps, update = [], Trainer._update

    def spy(self: Trainer, *arguments):
        if len(steps) == 3:
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(self.step)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", spy)
    with pytest.raises(KeyboardInterrupt):
        run([trained()], tmp_path / "cut", ["cpu"], lambda text: None)
    outcome = run([trained()], tmp_path / "cut", ["cpu"], lambda text: None)
    assert steps == [0, 1, 2, -1, 3, 4] and outcome.points == expected
    assert [p.x for p in expected] == [16, 32] and not list((tmp_path / "cut").rglob("*.safetensors"))


def test_a_stopped_training_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal ends it in good order, and the run of cells with it; it must not pass for one that is done."""
    update = Trainer._update

    def stopped(self: Trainer, batch, stopping: bool):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch, stopping or self.step == 2)

    monkeypatch.setattr(Trainer, "_update", stopped)
    with pytest.raises(InterruptedError, match="stopped by SIGTERM after step 3 of 5"):
        run([trained(), *CELLS], tmp_path, ["cpu"], lambda text: None)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.json")) and not (tmp_path / "runs").exists()
    assert len(run([trained()], tmp_path, ["cpu"], lambda text: None).points) == 2


@pytest.mark.slow
def test_cells_run_side_by_side(tmp_path: Path):
    cells = [Outliers(panel="p", series="l2", x=s, seed=0, share=s, dim=4, length=8, problems=2) for s in (0.0, 0.5)]
    alone = run(cells, tmp_path / "alone", ["cpu"], lambda text: None).points
    assert run(cells, tmp_path / "both", ["cpu", "cpu"], lambda text: None).points == alone


def test_robust_losses_survive_outliers():
    """The published motivation: at 2% outliers l2 fails and Huber and Yaad do not, each as good as a grid can make it."""

    def error(bias: str, share: float) -> float:
        cell = Outliers(panel="", series=bias, x=0, seed=0, share=share, dim=16, length=300, problems=6)
        return cell.tuned()[0]

    l2, huber, norm, yaad = (error(bias, 0.02) for bias in ("l2", "huber", "huber_norm", "yaad"))
    assert l2 > 0.3 and huber < 0.06 and norm < 0.06 and yaad < 0.12 and l2 > 5 * max(huber, norm, yaad)
    assert error("l2", 0.0) < 0.01 and error("huber_norm", 0.0) < 0.01


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_can_be_declared(name: str, scale: str, tmp_path: Path):
    """Cells differ, their models can be built, and what is left out says why."""
    book = tmp_path / "book.txt"
    book.write_text("It was a day. " * 100)
    options = Options(text=str(book), seeds=1)
    cells = EXPERIMENTS[name].cells(SCALES[scale], options)
    assert cells and len({cell.key for cell in cells}) == len(cells)
    assert {cell.panel for cell in cells} == set(EXPERIMENTS[name].axes())
    notes = EXPERIMENTS[name].notes(SCALES[scale], options)
    assert all(any(word in note for word in ("left out", "grid", "standardised")) for note in notes)
    for cell in cells:
        if isinstance(cell, Trained):
            assert cell.config.model.build(256).dim == SCALES[scale].dim


def test_sweep_runs_a_training_from_its_name_to_its_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(SCALES, "tiny", TOY)
    arguments = ["sweep", "length", "--out", str(tmp_path), "--models", "window", "--steps", "2", "--devices", "cpu"]
    assert main(arguments) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"cells", "points.csv", "table.md", "plot.svg", "plot.png"}
    rows = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert {row["panel"] for row in rows} == {"passkey", "products in S3"} and len(rows) == 4
    assert "products in S3" in capsys.readouterr().out
    monkeypatch.setattr(Trained, "run", lambda *_: pytest.fail("run again"))
    assert main(arguments) == 0


def test_report_means_over_seeds(tmp_path: Path):
    points = [Point(panel="p", series="s", x=x, seed=seed, value=x + seed) for x in (1, 2) for seed in (0, 1, 2)]
    points += [Point(panel="q", series="", x="name", seed=0, value=0.5, low=0.4, high=0.6)]
    report(
        tmp_path, "title", {"p": Axes(x="x", y="y", log="xy"), "q": Axes(x="what", y="y", chance=0.1)}, points, ["so"]
    )
    text = (tmp_path / "table.md").read_text()
    assert "| s | 2.000 [-0.484, 4.484] | 3.000 [0.516, 5.484] |" in text and "* so" in text
    assert "| name | 0.500 [0.400, 0.600] |" in text


@pytest.mark.parametrize("name", MEMORIES)
def test_models_are_those_of_the_zoo(name: str):
    zoo = pytest.importorskip("zoo", reason="the zoo is not here")
    if name != "ours":
        assert model(next(m for m, (_, memory) in MODELS.items() if memory == name), TINY).memory == zoo.spec(
            name, form="recommended"
        )


def test_errors_say_what_to_pass(tmp_path: Path, capsys):
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        sweep("dept", tmp_path)
    with pytest.raises(ValueError, match="no model 'yad'; did you mean 'yaad'"):
        sweep("depth", tmp_path, options=Options(models=("yad",)))
    with pytest.raises(ValueError, match="tiny, small, h100"):
        sweep("depth", tmp_path, scale="huge")
    assert main(["sweep", "enwik8", "--out", str(tmp_path)]) == 2
    assert "enwik8:FILE" in capsys.readouterr().err


def test_the_documentation_names_every_experiment_and_task():
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {*EXPERIMENTS, *TASKS, "OutlierRegression", "Forecast"}


def test_eval_measures_a_run(tmp_path: Path, capsys):
    """From a run to rows: the task it was trained on by length, another chunk size, and text."""
    records = Records(quiet=True)
    parity = Data(source='task:{"name": "state_tracking", "group": "parity"}', length=10, batch=2)
    config = Config(folder=str(tmp_path / "task"), steps=2, model=model("lmm", TOY), data=parity, records=records)
    train(config)
    out = tmp_path / "rows.json"
    asked = ["eval", str(tmp_path / "task"), "--examples", "5", "--chunks", "4", "64", "--lengths", "10", "20"]
    assert main([*asked, "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [(row["chunk"], row["length"], row["of"]) for row in rows] == [
        (4, 10, 50),
        (4, 20, 100),
        (64, 10, 50),
        (64, 20, 100),
    ]
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["chance"] == 0.5 for row in rows)
    (tmp_path / "text.txt").write_text("All work and no play. " * 200)
    text = Data(source=str(tmp_path / "text.txt"), length=16, batch=2, cache=str(tmp_path / "cache"))
    train(replace(config, folder=str(tmp_path / "text"), data=text))
    assert main(["eval", str(tmp_path / "text"), "--lengths", "16", "64", "--examples", "3", "--device", "cpu"]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    (tmp_path / "other.txt").write_text("x" * 1600)
    asked = ["eval", str(tmp_path / "text"), "--data", str(tmp_path / "other.txt"), "--device", "cpu"]
    assert main([*asked, "--examples", "1000"]) == 0
    assert "of 100\n" in capsys.readouterr().out  # all of the text that was named
    assert main(["eval", str(tmp_path / "nothing")]) == 2
    assert "neither a run" in capsys.readouterr().err


def table(folder: Path) -> str:
    """Two waves in the form of ETT."""
    path = folder / "table.csv"
    rows = (f"{i},{math.sin(i / 24)},{math.cos(i / 60) + 2}" for i in range(14_400))
    path.write_text("\n".join(["date,a,b", *rows]))
    return str(path)


@pytest.mark.slow
def test_forecasts_of_waves_come_true(tmp_path: Path):
    """A linear map of the past can continue a wave; so can a memory before a linear head, better than the mean can."""
    one = Forecast(path=table(tmp_path), lookback=96, horizon=24, rows=(600, 200, 200))
    size = replace(TOY, steps=80, batch=8, lr=4e-2)
    cells = [Forecasting(panel="p", series=s, x=24, seed=0, task=one, scale=size) for s in ("linear", "lmm")]
    linear, memory = (cell.run(tmp_path, "cpu")[0].value for cell in cells)
    assert linear < 0.1 and memory < 0.3


@pytest.mark.nightly
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two steps of every model on everything: nothing fails, and the report has every panel."""
    monkeypatch.setitem(SCALES, "tiny", TOY)
    book = tmp_path / "book.txt"
    book.write_bytes(b"It was a long day, and nobody had much to say about it. " * 2000)
    text = {"enwik8": f"enwik8:{book}", "forecast": table(tmp_path)}.get(name, str(book))
    if name == "enwik8":
        book.write_bytes(b"<page> of a Wikipedia </page>\n" * 3_100_000)
    outcome = sweep(name, tmp_path / "out", options=Options(text=text, steps=2, seeds=1), say=lambda said: None)
    assert [f"{cell.series} {cell.x}: {error}" for cell, error in outcome.failed] == []
    assert {point.panel for point in outcome.points} == set(EXPERIMENTS[name].axes())
    assert all(math.isfinite(point.value) for point in outcome.points)


@pytest.mark.nightly
def test_benchmarks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those that train on a GPU, at the size of a toy, and again from where they were."""
    from benchmarks import books, passkey, tasks

    book = tmp_path / "book.txt"
    book.write_bytes(b"It was a long day, and nobody had much to say about it. " * 200)
    sizes = ["--dim", "8", "--depth", "1"]
    text = ["--text", str(book), "--valid", str(book), "--devices", "cpu", "--heads", "1", "--precision", "float32"]
    asked = [
        "--tasks",
        "mqar, 16 pairs",
        "--models",
        "lmm",
        "yaad",
        "--tokens",
        "256",
        "--steps",
        "2",
        "--examples",
        "2",
    ]
    calls = {
        books: [
            *text,
            "--batch",
            "2",
            "--budget",
            "400",
            "--length",
            "64",
            "--segments",
            "4",
            "--models",
            "lmm",
            "transformer",
        ],
        tasks: [*text, *asked],
        passkey: [
            *("--minutes", "0.01", "--examples", "2", "--batch", "2", "--device", "cpu", "--models", "lmm", "window")
        ],
    }
    for module, arguments in calls.items():
        out = tmp_path / module.__name__
        monkeypatch.setattr("sys.argv", ["benchmark", "--out", str(out), *sizes, *arguments])
        module.main()
        before = {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.json")}
        module.main()
        assert len(before) == 2 and before == {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.json")}
        assert (out / "table.md").exists() and (out / "plot.svg").exists()

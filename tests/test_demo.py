"""The demo trains, saves, reads back and streams; that memories help is checked at night."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # where they are when a user runs the demo
demo, report, training, model, text = map(importlib.import_module, ("demo", "_report", "_train", "_model", "_text"))

TINY = training.Settings(steps=2, batch=2, length=40, judged=4)


def config(name: str, **fields: int):
    spec = demo.SPECS[name]
    return model.Config(spec=None if spec is None else spec.to_dict(), **fields)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(f"line {n}: été, {n % 7} and {n * n}\n" for n in range(200)))
    return path


@pytest.mark.parametrize("name", demo.SPECS)
def test_every_model_learns_is_saved_and_streams(name: str, book: Path, tmp_path: Path) -> None:
    seen: list[tuple] = []
    settings = dataclasses.replace(TINY, text=book)
    result = training.run(name, config(name, dim=16), settings, tmp_path, lambda *event: seen.append(event))
    assert [event[:2] for event in seen] == [(name, 1), (name, 2)]
    assert all(map(torch.isfinite, torch.tensor(result.curve + result.held_out)))

    trained = model.restore(tmp_path / name).double()
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
    whole, _ = trained(tokens)
    states, streamed, sizes = None, [], set()
    for token in tokens.T:
        logits, states = trained.step(token, states)
        streamed.append(logits)
        sizes.add(model.state_bytes(states))
    torch.testing.assert_close(torch.stack(streamed, 1), whole, rtol=1e-9, atol=1e-9)
    assert len(sizes) == 1


def test_a_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    before = model.ByteModel(config("custom", dim=16))
    model.save(before, tmp_path / "custom")
    after = model.restore(tmp_path / "custom")
    tokens = torch.arange(40)[None]
    assert torch.equal(before(tokens)[0], after(tokens)[0])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "custom", "model.safetensors"]


def test_the_baseline_has_no_fewer_parameters() -> None:
    sizes = {name: sum(p.numel() for p in model.ByteModel(config(name)).parameters()) for name in demo.SPECS}
    assert sizes.pop("baseline") >= max(sizes.values())


def test_the_report_is_complete(tmp_path: Path) -> None:
    def result(name: str, bits: float):
        held_out = (bits + 0.01 * torch.arange(8)).tolist()
        curve = [8.0, bits]
        return training.Result(
            name=name, parameters=1, path="p", state_bytes=2, bytes_per_second=3.0, curve=curve, held_out=held_out
        )

    results = {"titans": result("titans", 2.0), "baseline": result("baseline", 3.0)}
    console = Console(record=True, width=140)
    console.print(report.specs_table(demo.SPECS), report.results_table(results, results["baseline"]))
    shown = console.export_text()
    assert "-1.000 ± 0.000 │ *" in shown
    assert all(name in shown for name in demo.SPECS)
    report.plot(results, results["baseline"], tmp_path / "plot.png")
    report.write_json(results, {"settings": {"text": tmp_path}}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["results"]["titans"]["held_out"][0] == 2.0


def test_streamed_text_starts_with_the_prompt() -> None:
    torch.manual_seed(0)
    pieces = demo.stream(model.ByteModel(config("baseline", dim=16)), "é".encode(), 20, 1.0, 0)
    written = "".join(piece for piece, _ in pieces)
    assert written.startswith("é")
    assert all(c.isprintable() or c == "\n" for c in written)


@pytest.mark.parametrize(
    "arguments",
    [["--only", "mamba"], ["--steps", "0"], ["--text", "no/such/file"], ["--out", str(Path(__file__).parent)]],
)
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse(arguments)
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_held_out_text_is_of_other_files() -> None:
    standard = text.load()
    train, held_out = (bytes(part.numpy()) for part in (standard.train, standard.held_out))
    assert len(train) > len(held_out) > 100_000
    rows = text.segments(standard.held_out, 16, 100)
    copied = sum(bytes(row.to(torch.uint8).numpy()) in train for row in rows)
    assert copied <= 2  # files do quote one another, licences for example


@pytest.mark.nightly
def test_every_memory_beats_the_baseline_on_three_seeds(tmp_path: Path) -> None:
    configs = {name: config(name) for name in demo.SPECS}
    changes: dict[str, list[float]] = {name: [] for name in configs if name != "baseline"}
    for seed in range(3):
        settings = training.Settings(steps=800, seed=seed)
        results = training.run_all(configs, settings, tmp_path / str(seed), lambda *event: None)
        for name, seeds in changes.items():
            seeds.append(report.difference(results[name], results["baseline"])[0])
    for name, seeds in changes.items():
        mean, sigma = torch.tensor(seeds).mean(), torch.tensor(seeds).std()
        assert mean < -2 * sigma, f"{name}: {seeds} bits per byte against the baseline"

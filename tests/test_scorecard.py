"""The figures of the zoo: what is kept is complete, what is measured can fail, and three memories must recall."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from zoo import scorecard

MEASURED = [name for name in zoo.names() if not name.endswith("_h")]
"""A hybrid's memory is that of its entry without attention."""


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "titans_linear"])
def test_it_recalls(name: str):
    share, _ = scorecard.recall(name)
    assert share is not None and share >= 0.99


@pytest.mark.nightly
def test_who_only_adds_cannot_replace():
    """Of two values of a key the sum does not tell which came last; neighbours within the convolution do, now and then."""
    share, _ = scorecard.recall("linear_attention")
    assert share is not None and 0.4 <= share <= 0.7


def test_every_entry_has_figures():
    assert set(scorecard.read()) == set(MEASURED)


def test_figures_survive_the_file(tmp_path: Path):
    scores = {"deltanet": scorecard.Score({4: 0.25}, 0.5, 100), "gla": scorecard.Score()}
    scorecard.write(scores, tmp_path / "scores.json")
    assert scorecard.read(tmp_path / "scores.json") == scores
    assert scorecard.read(tmp_path / "none.json") == {}


def test_hebbian_memories_have_no_distance_and_delta_rules_do():
    assert scorecard.distance("retnet") == {}
    found = scorecard.distance("deltanet")
    assert found.keys() == set(scorecard.CHUNKS)
    assert found[4] < found[16] < found[64]


def test_a_committed_distance_is_the_measured_one():
    kept = scorecard.read()["lattice"].distance
    assert kept == pytest.approx(scorecard.distance("lattice"), rel=0.1)


def test_a_sequence_asks_for_the_latest_value_of_every_key():
    tokens, wanted = scorecard.sequences(5, torch.Generator().manual_seed(0))
    writes = scorecard.WRITES * scorecard.KEYS
    pairs = tokens[:, : 2 * writes].unflatten(1, (-1, 2))
    asked, blanks = tokens[:, 2 * writes :].unflatten(1, (-1, 2)).unbind(-1)
    assert (blanks == 2 * scorecard.SYMBOLS).all()
    for row in range(5):
        table = {int(k): int(v) - scorecard.SYMBOLS for k, v in pairs[row]}  # later entries replace earlier ones
        assert sorted(table) == sorted(asked[row].tolist()) and len(table) == scorecard.KEYS
        assert [table[int(k)] for k in asked[row]] == wanted[row].tolist()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of its own for the figures."""
    path = tmp_path / "scores.json"
    monkeypatch.setattr(scorecard.read, "__defaults__", (path,))
    monkeypatch.setattr(scorecard.write, "__defaults__", (path,))
    return path


def test_it_is_a_command(kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(scorecard, "recall", lambda name: (0.5, 10))
    monkeypatch.setattr(scorecard, "distance", lambda name: {4: 0.123456})
    scorecard.main(["gla"])
    assert scorecard.read(kept) == {"gla": scorecard.Score({4: 0.12}, 0.5, 10)}
    assert capsys.readouterr().out.startswith("gla  ")


def test_one_figure_leaves_the_other(kept: Path, monkeypatch: pytest.MonkeyPatch):
    scorecard.write({"gla": scorecard.Score({4: 0.5}, 0.25, 3)}, kept)
    monkeypatch.setattr(scorecard, "recall", lambda name: (0.75, 10))
    scorecard.main(["gla", "--only", "recall"])
    assert scorecard.read(kept) == {"gla": scorecard.Score({4: 0.5}, 0.75, 10)}


def test_an_error_keeps_what_was_done(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorecard, "recall", lambda name: {"gla": (0.5, 10)}[name])
    with pytest.raises(KeyError, match="hgrn"):
        scorecard.main(["gla", "hgrn", "--only", "recall"])
    assert scorecard.read(kept) == {"gla": scorecard.Score({}, 0.5, 10)}


def test_processes_measure_the_same(kept: Path):
    scorecard.main(["deltanet", "retnet", "--only", "distance", "--jobs", "2"])
    committed = scorecard.read(scorecard.SCORECARD)
    for name, score in scorecard.read(kept).items():
        assert score.distance == pytest.approx(committed[name].distance, rel=0.1)
    assert list(scorecard.read(kept)) == ["retnet", "deltanet"]


def test_an_unknown_entry_is_found_out_before_anything_is_measured(kept: Path):
    with pytest.raises(KeyError, match="did you mean 'deltanet'"):
        scorecard.main(["gla", "deltanett"])
    assert not kept.exists()

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


def test_a_sequence_asks_for_what_it_holds():
    tokens, wanted = scorecard.sequences(5, torch.Generator().manual_seed(0))
    pairs = tokens[:, : 2 * scorecard.PAIRS].unflatten(1, (-1, 2))
    asked = tokens[:, 2 * scorecard.PAIRS :: 2]
    for row in range(5):
        table = {int(k): int(v) - scorecard.SYMBOLS for k, v in pairs[row]}
        assert [table[int(k)] for k in asked[row]] == wanted[row].tolist()


def test_it_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    kept = tmp_path / "scores.json"
    monkeypatch.setattr(scorecard, "recall", lambda name: (0.5, 10))
    monkeypatch.setattr(scorecard, "distance", lambda name: {4: 0.123456})
    monkeypatch.setattr(scorecard.read, "__defaults__", (kept,))
    monkeypatch.setattr(scorecard.write, "__defaults__", (kept,))
    scorecard.main(["gla"])
    assert scorecard.read(kept) == {"gla": scorecard.Score({4: 0.12}, 0.5, 10)}
    assert capsys.readouterr().out.startswith("gla  ")

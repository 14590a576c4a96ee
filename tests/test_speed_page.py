"""Benchmarks write one form of file, and the page on speed shows all of it, missed bars as missed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, rows

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    from _hooks import speed

    return speed


def kernels() -> list[report.Row]:
    """A row of two sides as `benchmarks.gpu` measures them: 2 times faster forward, 1.25 times with backward."""
    times = {"ours": (1.0, 4.0), "theirs <1>": (2.0, 5.0)}
    results = [
        {
            "row": "delta",
            "side": side,
            "shape": "B4 T4096 H16 D64",
            "peak_mib": 100.0,
            "times": {"forward": [a, a, a], "both": [b, b - 1, b + 1], "both graph": [b / 2, b / 2, b / 2]},
        }
        for side, (a, b) in times.items()
    ]
    return rows.gpu(results, {"delta": (3, 1.2)})


def test_ratios_and_bars():
    found = {row.row: row for row in kernels() if row.ratio is not None}
    assert [(r.ratio, r.bar, r.peer) for r in found.values()] == [
        (2.0, 3, "theirs <1>"),
        (1.25, 1.2, "theirs <1>"),
        (1.25, 1.2, "theirs <1>"),
        (1.0, None, "theirs <1>"),
    ]
    assert [row.series for row in kernels()].count("theirs <1>") == 4
    alone = rows.comparison("gpu", "alone", "T1", "ms", {"ours": (1.0, None)}, {"theirs": 2.0})
    assert alone == [report.Row("gpu", "alone", "ours", "T1", 1.0, None, "ms")]
    above = rows.limit("stream", "growth", "pieces", "T9", 16.0, "MiB", 8.0)
    assert (above.ratio, above.bar, above.peer) == (0.5, 1.0, "at most 8")


def test_models_and_first_passes():
    """Each model beside the transformer of its size and length; those that failed are left out."""
    usual: dict[str, Any] = {"size": "170m", "batch": 8, "slowest": 1.0, "fastest": 9.0, "mfu": 0.25}
    speeds = [("transformer", 4096, 8.0, ""), ("mac", 4096, 4.0, ""), ("mac", 32768, 2.0, ""), ("lmm", 4096, 0.0, "no")]
    results = [usual | {"model": m, "length": t, "tokens_per_second": rate, "error": e} for m, t, rate, e in speeds]
    found = rows.models(results)
    assert [(r.series, r.ratio) for r in found if r.unit == "tokens/s"] == [
        ("transformer", None),
        ("mac", 0.5),
        ("mac", None),
    ]
    assert [r.value for r in found if r.unit != "tokens/s"] == [25.0] * 3
    (slow,) = rows.cold({"matrix": {"first": 30.0, "second": 1.0}}, 15.0)
    assert (slow.ratio, slow.bar, slow.peer) == (0.5, 1.0, "at most 15")


def test_a_file_is_picked_up(speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No edit of the page: it is enough that the file is there."""
    points = [
        report.Row("growth", "time", series, f"T{t}", t / 64 * (1 + (series == "b")), None, "ms")
        for t in (1024, 2048, 4096)
        for series in "ab"
    ]
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    assert speed.measured() == ""
    report.write(tmp_path / "one.json", "On a card", "python -m here", {"device": "D"}, kernels(), "a <note>")
    report.write(tmp_path / "two.json", "On another", "python -m there", {"device": "E"}, points)
    page = speed.measured()
    assert page.index("## On a card {#results-one}") < page.index("## On another {#results-two}")
    assert "2 of 3 bars are kept, 1 missed." in page and "3: missed" in page and "1.2: kept" in page
    assert "a &lt;note&gt;" in page and "<1>" not in page
    assert page.count("<svg") == page.count("<title>") == 2
    assert "time, ms, over 1K to 4K tokens: a from 16 to 64; b from 32 to 128" in page


def test_an_open_circle_is_a_missed_bar(speed: Any):
    drawn = speed.curves.ratios([asdict(row) for row in kernels() if row.bar is not None])
    assert drawn.count('fill-opacity="0"') == 1 and drawn.count('fill-opacity="1"') == 2
    assert drawn.count('stroke-width="2.5"') == 3


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_are_of_this_form(path: Path):
    result = json.loads(path.read_text())
    assert {"title", "command", "machine", "note", "rows"} == set(result)
    assert result["command"].startswith("python -m benchmarks.")
    found = [report.Row(**row) for row in result["rows"]]
    assert found and all(row.value > 0 for row in found)
    for row in found:  # what a ratio says, it says of numbers that are there
        theirs = [
            r.value
            for r in found
            if r.series == row.peer and (r.row, r.unit, r.shape) == (row.row, row.unit, row.shape)
        ]
        if theirs and not row.unit.endswith("/s"):
            assert row.ratio == pytest.approx(theirs[0] / row.value)

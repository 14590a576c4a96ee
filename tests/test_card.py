"""Lists of jobs for machines with GPUs."""

from pathlib import Path

import pytest

from benchmarks.card import Queue, parsed

LIST = """
lane one - 2
first 9 echo "$OUT"; sleep 0.2
after second
third 9 cat $OUT/second.txt  # what the other lane wrote
fourth 9 test -f $OUT/second.txt
lane two 0,1 1
second 9 sleep 0.1; echo "cards $CUDA_VISIBLE_DEVICES"
fails 9 exit 3
"""


def test_lanes_wait_for_each_other_and_are_not_run_again(tmp_path: Path) -> None:
    Queue(parsed(LIST), tmp_path).run()
    assert (tmp_path / "third.txt").read_text() == "cards 0,1\n"
    assert (tmp_path / "first.txt").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "fourth.done").exists()
    assert not (tmp_path / "fails.done").exists()
    before = (tmp_path / "status").read_text()
    assert "end fails, status 3" in before
    Queue(parsed(LIST), tmp_path).run()
    again = (tmp_path / "status").read_text().removeprefix(before)
    assert again.count("begin") == 1
    assert "begin fails" in again


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("job 3 true", "not a job"),
        ("lane a - 1\njob true", "not a job"),
        ("lane a - 1\nafter b\njob 3 true", "wait for"),
    ],
)
def test_what_is_no_list(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parsed(text)


@pytest.mark.parametrize("path", sorted(Path("benchmarks/jobs").glob("*.txt")), ids=lambda p: p.stem)
def test_lists_that_are_there(path: Path) -> None:
    assert parsed(path.read_text())

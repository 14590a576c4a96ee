"""Every task is deterministic, solvable, and asks where it says; an oracle reads the answers from the inputs alone."""

import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles import ORACLES
from titans.data import inputs, labels, take
from titans.tasks import TASKS, Examples, Forecast, OutlierRegression, Task, task
from titans.tasks.haystack import NOISE, hide, window

LINES = [f"Chapter {i}. It was a long day, and nobody had much to say about it. " for i in range(40)]


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(LINES))
    return str(path)


VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in TASKS if name != "babilong"),
    *({"name": "babilong", "kind": f"qa{i}"} for i in range(1, 6)),
    *({"name": "state_tracking", "group": g} for g in ("parity", "a5")),
    {"name": "mqar", "length": 256, "pairs": 32, "tokens": 512},
    {"name": "corrupted_keys", "width": 6, "corrupted": 2},
    {"name": "babilong", "kind": "qa2", "facts": 30, "length": 2000},
    {"name": "babilong", "kind": "qa4", "facts": 4},
    {"name": "passkey", "repeats": 4},
    {"name": "s_niah_3", "repeats": 1},
]
variants = pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())))


def built(fields: dict[str, Any], book: str) -> Task:
    given = {"text": book} if fields["name"] in ("s_niah_2", "s_niah_3", "babilong") else {}
    return task(fields, **given)


@variants
def test_oracle_solves_it(fields: dict[str, Any], book: str):
    """All answers of 25 examples, at two lengths; where they are asked is where the labels are."""
    one = built(fields, book)
    for length, index in product((one.length, one.length + 37), range(25)):
        x, y = one.at(length).example(seed=3, index=index)
        assert x.shape == y.shape == (length,)
        assert x.min() >= 0 and x.max() < one.at(length).vocabulary
        asked = np.flatnonzero(y >= 0)
        answers = ORACLES[one.name](one.at(length), x.tolist(), asked.tolist())
        assert list(answers) == y[asked].tolist()


@variants
def test_examples_depend_on_seed_split_and_index_alone(fields: dict[str, Any], book: str):
    one = built(fields, book)
    first = one.example(0, 5)
    one.batch([3, 1])  # nothing is carried over
    again = built(fields, book).example(0, 5)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    others = [one.example(1, 5), one.example(0, 6), one.example(0, 5, "test")]
    assert all((first.inputs != other.inputs).any() for other in others)


@variants
def test_chance_is_what_guessing_gets(fields: dict[str, Any], book: str):
    """Guessing evenly among the answers that occur does not beat the stated chance by much."""
    one = built(fields, book)
    drawn = [one.example(0, i) for i in range(200)]
    answers = [tuple(y[y >= 0]) for _, y in drawn]
    if one.scored == "token":
        values = np.concatenate([np.array(a) for a in answers])
        best = np.unique(values, return_counts=True)[1].max() / len(values)
        assert best < 3 * max(one.chance, 3 / one.vocabulary) + 0.05
    else:
        assert len(set(answers)) <= 1.2 / one.chance
        assert max(answers.count(a) for a in set(answers)) / len(answers) < 3 * one.chance + 0.05


def test_numbers_do_not_change():
    """The same examples on every machine and release; a change here is a change of every published accuracy."""
    digest = hashlib.sha256()
    for name in sorted(set(TASKS) - {"s_niah_2", "s_niah_3"}):
        x, y = task(name).example(0, 0)
        digest.update(x.astype("<i8").tobytes() + y.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "8220fffd1f3212af"


def test_every_task_has_an_oracle():
    assert ORACLES.keys() == TASKS.keys()


def test_batches_follow_the_protocol():
    source = Examples(task("state_tracking"), size=3)
    batch = source.batch(2)
    assert batch["tokens"].shape == (3, 41) and batch["tokens"].dtype == torch.int64
    tokens, mask, target = inputs(batch)
    assert mask is None and (target == batch.get("labels")).all()
    x, y = task("state_tracking").example(0, 7)
    assert (tokens[1].numpy() == x).all() and (target[1].numpy() == y).all()
    assert (labels(take(batch, range(1, 2))) == target[1:2]).all()
    assert source.vocabulary == 6 and source.bytes_per_token is None
    assert Examples(task("passkey"), size=1).bytes_per_token == 1.0


@pytest.mark.parametrize("name", ["passkey", "mqar", "babilong", "mad_fuzzy_recall"])
def test_json_round_trip(name: str):
    one = task(name)
    assert task(one.to_dict()) == one


def test_needles_stand_where_they_are_put(book: str):
    for depth in (0.0, 0.5, 1.0):
        x, y = task("s_niah_2", text=book, length=2000, depth=depth).example(0, 0)
        assert abs(bytes(x.astype(np.uint8)).index(b"The special number") / 1900 - depth) < 0.06
        assert (y >= 0).sum() == 7 and (y[:-7] < 0).all()


def test_facts_keep_their_order_and_sizes_are_exact(book: str):
    rng = np.random.default_rng(0)
    for size in (60, 61, 400, 5000):
        hay = hide([b"One. ", b"Two. "], size, book, rng)
        assert len(hay) == size and hay.index(b"One. ") < hay.index(b"Two. ")
    assert len(window(None, 1000, rng)) == 1000 and NOISE in window(None, 1000, rng)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: task("mqr"), "did you mean 'mqar'"),
        (lambda: task("mqar", pair=3), "did you mean 'pairs'"),
        (lambda: task("mqar", length=7), "at least 16"),
        (lambda: task("mqar", pairs=5000, length=20000), "pairs must lie"),
        (lambda: task("state_tracking", group="s4"), "parity, s3, a5"),
        (lambda: task("babilong", kind="qa6"), "qa1"),
        (lambda: task("babilong", kind="qa3", facts=2), "qa3 takes at least 3 facts, got 2"),
        (lambda: task("mad_fuzzy_recall", symbols=4, longest=1), "4 symbols make 2 words of up to 1, not 8"),
        (lambda: task("s_niah_2"), "pass text='FILE'"),
        (lambda: task("passkey", text="no.txt").example(0, 0), "there is no 'no.txt'"),
        (lambda: task("corrupted_keys", corrupted=2), "below half"),
        (lambda: task("passkey").example(0, 0, "dev"), "train, valid, test"),  # type: ignore[arg-type]
        (lambda: task("mad_recall", symbols=5), "even"),
        (lambda: OutlierRegression(outliers=2), "outliers in"),
        (lambda: Forecast(path="no.csv").channels, "there is no 'no.csv'"),
    ],
)
def test_errors_say_what_to_pass(call: Any, says: str):
    with pytest.raises(ValueError, match=says):
        call()


def test_forecast_windows(tmp_path: Path):
    """Standardised on the first part; a window's past may reach back into the part before, never its future."""
    table = np.arange(60.0)[:, None] * np.array([1.0, -2.0]) + np.array([5.0, 0.0])
    lines = ["date,a,b", *(f"2020-01-{i},{a},{b}" for i, (a, b) in enumerate(table))]
    (tmp_path / "series.csv").write_text("\n".join(lines))
    series = Forecast(path=str(tmp_path / "series.csv"), lookback=8, horizon=4, rows=(30, 15, 15))
    past, future = series.windows("train")
    assert past.shape == (19, 8, 2) and future.shape == (19, 4, 2)
    whole = torch.from_numpy((table - table[:30].mean(0)) / table[:30].std(0)).float()
    past, future = series.windows("test")
    torch.testing.assert_close(past[0], whole[37:45])
    torch.testing.assert_close(future[-1], whole[56:60])
    with pytest.raises(ValueError, match="60 rows"):
        Forecast(path=str(tmp_path / "series.csv")).windows("test")

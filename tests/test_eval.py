"""Evaluation in pieces says what evaluation at once says, and its intervals cover."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from titans import TitansConfig, TitansLM
from titans.eval import (
    Likelihood,
    accuracy,
    answers,
    by_chunk,
    growing,
    likelihood,
    losses,
    over_seeds,
    wilson,
    with_chunk,
)
from titans.eval._interval import quantile
from titans.loss import IGNORED
from titans.tasks import task


def build(kind: str = "mac", vocabulary: int = 17, **fields) -> TitansLM:
    torch.manual_seed(0)
    config = TitansConfig(
        vocabulary=vocabulary, dim=16, layers=(kind,), memory_heads=2, window=8, segment=8, initializer=1.0, **fields
    )
    return TitansLM(config).double().eval()


@pytest.mark.parametrize("kind", ["memory", "mac", "mag", "swa"])
@pytest.mark.parametrize("chunk", [7, 16, 64])
def test_pieces_are_the_whole(kind: str, chunk: int):
    model, tokens = build(kind), torch.randint(17, (3, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens)
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(losses(model, tokens, chunk), expected, rtol=0, atol=1e-12)
    labels = torch.where(torch.rand(3, 50) < 0.3, logits.argmax(-1), IGNORED)
    labels[:, ::2] = torch.where(labels[:, ::2] >= 0, (labels[:, ::2] + 1) % 17, IGNORED)
    right = answers(model, tokens, labels, chunk)
    assert (right == ((labels >= 0) & (torch.arange(50) % 2 == 1))).all()


def test_the_head_keeps_float32_under_autocast():
    """Where only the head is a product."""
    model, tokens = build("swa").float(), torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(1))
    model.layers = model.layers[:0]
    wide = losses(model, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = losses(model, tokens)
    assert narrow.dtype == torch.float32 and torch.equal(narrow, wide)


def test_memory_does_not_grow_with_length(monkeypatch: pytest.MonkeyPatch):
    """Whatever the length, the model sees pieces of the same size and carries a state of the same size."""
    model, seen = build("mac"), []
    run = TitansLM.hidden

    def spy(self: TitansLM, tokens: torch.Tensor, cache=None, **rest):
        x, after = run(self, tokens, cache, **rest)
        seen.append((tokens.numel(), after.nbytes))
        return x, after

    monkeypatch.setattr(TitansLM, "hidden", spy)
    one = task("mad_selective_copying", data=4, length=16, symbols=6)
    accuracy(model, one, [640], examples=2, chunk=64, tokens=640)
    assert max(size for size, _ in seen) == 64 and len({nbytes for _, nbytes in seen}) == 1


class Perfect(TitansLM):
    """Answers state tracking: its stream is the labels."""

    def hidden(self, tokens, cache=None, *, mask=None):
        before: Any = 0 if cache is None else cache
        total = (tokens.cumsum(1) + before) % 2
        return F.one_hot(total, 2).double(), total[:, -1:]

    def logits(self, hidden):
        return hidden


def test_accuracy_counts_what_the_task_scores():
    perfect = Perfect(build("memory", vocabulary=2).config)
    rows = accuracy(perfect, task("state_tracking", group="parity"), growing(40, 4), examples=20, chunk=33)
    assert [(r.length, r.correct, r.total, r.examples) for r in rows] == [
        (40, 800, 800, 20),
        (80, 1600, 1600, 20),
        (160, 3200, 3200, 20),
    ]
    assert rows[0].interval == wilson(20, 20) and rows[0].chance == 0.5
    whole = accuracy(build(vocabulary=256), task("passkey", length=200), [200], examples=3)[0]
    assert whole.total == 3  # an example counts once, whatever the length of its answer


def test_guessing_is_inside_its_interval():
    model = build("memory", vocabulary=6)
    row = accuracy(model, task("state_tracking"), [100], examples=40)[0]
    assert row.interval.low < 1 / 6 < row.interval.high


def test_wilson_is_the_root_of_its_equation():
    for correct, total in ((0, 5), (3, 10), (199, 200), (50, 100)):
        p, low, high = wilson(correct, total)
        for end in {low, high} - {0.0, 1.0}:
            assert math.isclose(abs(p - end), 1.959964 * math.sqrt(end * (1 - end) / total), rel_tol=1e-5)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1


def test_wilson_covers():
    rng = np.random.default_rng(0)
    for p in (0.02, 0.5, 0.97):
        inside = [(w := wilson(int(rng.binomial(50, p)), 50)).low <= p <= w.high for _ in range(2000)]
        assert np.mean(inside) > 0.92


def test_student_interval_covers():
    rng = np.random.default_rng(0)
    found = [over_seeds(rng.standard_normal(3).tolist()) for _ in range(2000)]
    assert 0.93 < np.mean([f.low <= 0 <= f.high for f in found]) < 0.97
    assert math.isnan(over_seeds([1.0]).low)


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 11, 12, 20, 33, 100, 1000])
def test_quantiles_are_those_of_student(freedom: int):
    """The density between them, by Simpson's rule, is 95%."""
    end = quantile(freedom)
    x = np.linspace(0, end, 20_001)
    weights = np.full(len(x), 2.0)
    weights[1::2], weights[[0, -1]] = 4.0, 1.0
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(log - (freedom + 1) / 2 * np.log1p(x * x / freedom))
    inside = 2 * float((weights * density).sum()) * (x[1] - x[0]) / 3
    assert abs(inside - 0.95) / (2 * density[-1]) < 1e-3  # the error of the quantile, to first order


def test_few_segments_have_the_interval_of_few_runs():
    nats = [1.0, 2.0, 4.0]
    found = Likelihood(torch.tensor(nats), torch.ones(1), 1 / math.log(2)).bits_per_byte
    assert found == pytest.approx(over_seeds(nats))
    many = np.random.default_rng(0).standard_normal(12).tolist()
    assert over_seeds(many).high - over_seeds(many).value == pytest.approx(
        2.201 * np.std(many, ddof=1) / 12**0.5, rel=2e-4
    )


def test_bits_of_an_even_model_are_those_of_its_vocabulary():
    model = build("memory", vocabulary=16)
    with torch.no_grad():
        model.norm.weight.zero_()
    text = torch.randint(16, (1000,), dtype=torch.uint8)
    found = likelihood(model, text, length=90, segments=5, bytes_per_token=0.5)
    assert math.isclose(found.bits_per_byte.value, 8.0, rel_tol=1e-6) and math.isclose(
        found.perplexity, 16, rel_tol=1e-6
    )
    assert len(found.nats) == 5 and found.curve()[-1][0] == 90


def test_positions_are_averaged_where_they_are():
    model, text = build("memory"), torch.randint(17, (200,), generator=torch.Generator().manual_seed(0))
    found = likelihood(model, text, length=30, rows=4)
    alone = torch.cat([losses(model, text[None, b : b + 31]) for b in range(0, 180, 30)])
    torch.testing.assert_close(found.by_position.double(), alone.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.nats, alone.mean(1))


def test_other_chunk_sizes_are_other_functions_of_the_same_weights():
    model, tokens = build("memory"), torch.randint(17, (2, 40), generator=torch.Generator().manual_seed(1))
    same, other = with_chunk(model, 16), with_chunk(model, 4)
    with torch.no_grad():
        assert torch.equal(model(tokens), same(tokens)) and not torch.allclose(model(tokens), other(tokens))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    lagging = TitansLM(replace(model.config, memory=replace(model.config.memory, anchor_lag=3)))
    assert by_chunk(lagging, [1, 2, 8], lambda m: m.config.memory.anchor_lag) == {1: 0, 2: 1, 8: 3}


def test_errors_say_what_to_pass():
    with pytest.raises(ValueError, match="build it with vocabulary=256"):
        accuracy(build(), task("passkey"), [512])
    with pytest.raises(ValueError, match="more than length=50"):
        likelihood(build(), torch.arange(20), length=50)
    for name, value in (("length", 0), ("segments", 0), ("rows", 0), ("chunk", -1)):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
            likelihood(build(), torch.arange(20) % 17, **{"length": 5, name: value})
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        accuracy(build("memory", vocabulary=6), task("state_tracking"), [10], examples=0)
    with pytest.raises(ValueError, match="2 of 1"):
        wilson(2, 1)
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([])

"""A sequence in segments at once: the numbers of the sequence in one, and when it is cut at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from miras import AssociativeMemory
from miras.biases import L2, Dot
from miras.engine.plan import plan
from miras.kernels import Dims, Kernel, choose, matrix, residuals, split, trust
from miras.kernels._matrix import split as segments
from miras.kernels._matrix.launches import Tiles
from miras.testing.laws import tensors
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, same_bits_twice
from tests.test_kernels_matrix import drawn, pieces_agree

CASES: dict[str, dict[str, Any]] = {
    "l2": dict(length=85),  # ten chunks and a part of one; odd widths, read before the write
    "implicit in chunks": dict(length=64),
    "dgd in chunks": dict(length=64),
    "second order": dict(length=64),
    "delta rule": dict(length=320, heads=1),
    "gated delta rule": dict(length=290, heads=1),
    "delta rule with momentum": dict(length=290, heads=1),
    "two heavy balls": dict(length=256, heads=1),
    "dgd": dict(length=256, heads=1),
    "linear attention": dict(length=260, heads=1),
    "linear attention with momentum": dict(length=390, heads=1),
}
"""Cases of matrices whose errors are affine in the memory, at sizes that leave two or three tiles a segment."""

cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four segments, whatever a device has; as many as there are tiles where these are fewer."""
    monkeypatch.setattr(segments, "segments", lambda x, constant, available: max(min(x.m, 4), 1))


WEAK = {"log_decay": 0.02, "log_momentum": 0.3}
"""Factors of gates with which something of a segment is left after the next one."""


def lasting(name: str, **sizes: Any) -> Problem:
    p = drawn(name, **CASES[name] | sizes)
    return replace(p, gates={g: WEAK.get(g, 1.0) * x for g, x in p.gates.items()})


def large(name: str, d: int, **sizes: Any) -> Problem:
    """Tiles of 64 tokens, and steps small enough for 64 stale gradients."""
    p = lasting(name, d_key=d, d_value=d, **sizes)
    gates = {g: 0.2 * x if g == "lr" else x for g, x in p.gates.items()}
    return replace(p, spec=replace(p.spec, chunk_size=64 if p.spec.chunk_size > 1 else 1), gates=gates)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@pytest.mark.usefixtures("cut")
@cases
def test_interpreted(name: str) -> None:
    agrees(lasting(name, batch=2 if name == "l2" else 1), torch.float32, "cpu")


@pytest.mark.usefixtures("cut")
def test_masked_and_packed() -> None:
    pieces_agree("l2")


@pytest.mark.gpu
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(lasting(name), dtype, "cuda")


REAL = ["l2", "dgd in chunks", "delta rule with momentum", "gated delta rule", "linear attention"]


@pytest.mark.gpu
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("length", [512, 777])
@pytest.mark.parametrize("name", REAL)
def test_tiles_on_device(name: str, length: int, d: int) -> None:
    """Real sizes at bfloat16, whole tiles or not, and the same bits twice."""
    p = large(name, d, length=length)
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", REAL)
def test_cut_by_itself_on_device(name: str, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many segments as the device at hand is worth, in a sequence that has a tail."""
    counts: list[int] = []
    choose_count = segments.segments
    monkeypatch.setattr(segments, "segments", lambda *a: counts.append(choose_count(*a)) or counts[-1])
    agrees(large(name, d, batch=1, heads=1, length=4096 + 33), torch.bfloat16, "cuda")
    assert max(counts) > 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very function that counts segments."""
    for name, value in {"processors": lambda _: 1000, "LEAST": 2, "JOIN": 0}.items():
        monkeypatch.setattr(segments, name, value)
    compiles(cast(drawn("l2", length=64), DTYPE, DEVICE), "q", "k", "v", "state/memory/w")


def test_compiled_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first length is cut, the second makes a graph for every length, in one piece."""
    for name, value in {"processors": lambda _: 1000, "LEAST": 2, "JOIN": 0}.items():
        monkeypatch.setattr(segments, name, value)
    torch.compiler.reset()
    core = AssociativeMemory(drawn("l2").spec, "kernel")
    call = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):  # pyright: ignore[reportPrivateUsage]
        for length in (64, 96, 128, 168):
            p = cast(drawn("l2", length=length), DTYPE, DEVICE)
            close(call(p.q, p.k, p.v, p.gates, p.state)[0], p.run("kernel")[0])


def test_the_cut_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    p = cast(drawn("delta rule with momentum", length=300), DTYPE, DEVICE)
    outputs = []
    for count in (1, 2, 3):
        monkeypatch.setattr(segments, "segments", lambda x, constant, available, n=count: n)
        outputs.append(tensors(*p.run("kernel")))
    for cut_up in outputs[1:]:
        for n, x in cut_up.items():
            close(x, outputs[0][n])


LONG = Tiles(1, 8, 65536, 64, 1024, 2, 128, 128, torch.bfloat16)


def test_when_it_is_cut() -> None:
    """One long sequence of few heads on a large device, and nothing else."""
    assert 4 <= segments.segments(LONG, False, 132) <= 8
    assert segments.segments(LONG, True, 132) >= 8  # nothing but scales to find
    assert segments.segments(LONG._replace(B=16), False, 132) == 1  # the card is full
    assert segments.segments(LONG._replace(m=16), False, 132) == 1  # too short: `miras.kernels.trust` sees the rest
    assert segments.segments(LONG, False, 0) == 1  # no device


def test_the_first_use_tries_segments() -> None:
    """At the sizes of `miras.kernels.trust`, two heads of 64 tiles."""
    for d, slots in ((16, 0), (64, 0), (64, 1), (128, 0), (128, 1)):
        assert segments.segments(Tiles(1, 2, 4096, 64, 64, 1 + slots, d, d, torch.bfloat16), False, 132) > 1


def test_constant_errors() -> None:
    """Told by the key that the operator gets."""
    assert residuals.constant(residuals.key(Dot()))
    assert not residuals.constant(residuals.key(L2())) and not residuals.constant(residuals.AFFINE)


def test_a_wrong_variant_leaves_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a wrong whole leaves nothing, since short sequences are its own."""
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    for wrong, wanted in (((), split.CHUNKS), ((split.CHUNKS,), matrix.CHUNKS), ((matrix.CHUNKS,), None)):
        monkeypatch.setattr(trust, "tried", lambda kernel, *_, w=wrong: kernel not in w)
        where = torch.device("cuda"), torch.bfloat16
        assert trust.trusted(split.CHUNKS, drawn("l2").spec, Dims(16, 16), *where) == wanted


@pytest.mark.parametrize("cards", [0, 132])
def test_what_is_not_cut_is_not_tried(monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    from miras.engine import run

    asked: list[Kernel] = []

    def trusted(kernel: Kernel, *_: Any) -> None:  # so that PyTorch computes this
        asked.append(kernel)

    monkeypatch.setattr(segments, "processors", lambda device: cards)
    monkeypatch.setattr(run, "trusted", trusted)
    p = drawn("l2", length=4096, heads=1, batch=1)
    cast(p, torch.float32, DEVICE).run("kernel")
    assert asked == [split.CHUNKS if cards else matrix.CHUNKS]


def test_who_is_cut() -> None:
    where = (torch.device("cuda"), torch.float32)
    names = {
        "l2": "split matrix chunks",
        "linear attention": "split matrix tokens",
        "dgd": "split matrix tokens",
        "huber": "matrix chunks",
    }
    for name, wanted in names.items():
        p = drawn(name)
        shapes = AssociativeMemory(p.spec).shapes(16, 16)
        forced = choose(p.spec, shapes, 1, Dims(16, 16), where, forced=True)
        assert not isinstance(forced, str) and forced.name == wanted
        unasked = choose(p.spec, shapes, 1, Dims(16, 16), where)
        assert not isinstance(unasked, str) and unasked.proven
        assert plan(p.spec, shapes, 1, None, None, Dims(16, 16), where).kernel == unasked

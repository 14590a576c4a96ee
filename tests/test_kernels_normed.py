"""A matrix behind a layer norm in Triton kernels: what the reference path computes, interpreted or (``gpu``) on a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.testing import problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, same_bits_twice

LINE: dict[str, Any] = {"name": "mlp", "depth": 1, "bias": True}
BARE = LINE | {"bias": False}
TTT = dict(architecture=LINE, bias={"name": "l2", "half": False}, retention="none", algorithm="mini_batch")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ttt_linear": (dict(), dict(length=24)),
    "as the paper": (dict(algorithm="gd", retention="none"), dict(length=21)),
    "without a vector": (dict(architecture=BARE), dict(length=16)),
    "bounded": (dict(architecture=BARE, step_bound=1.0), dict(length=16)),
    "bounded with momentum": (
        dict(architecture=BARE, step_bound=1.0, algorithm="momentum", retention="l2"),
        dict(length=16),
    ),
    "momentum": (dict(algorithm="momentum", retention="l2"), dict(length=16)),
    "decayed mini-batches": (dict(retention="l2"), dict(length=16)),
    "read before the write": (dict(read="previous"), dict(length=16)),
    "qhm": (dict(algorithm="qhm", retention="l2", bias="log_cosh"), dict(length=16)),
    "huber": (dict(algorithm="gd", bias="huber"), dict(length=16)),
    "huber per channel": (dict(bias={"name": "huber", "per": "value"}), dict(length=16)),
    "value shift": (dict(bias="value_shift"), dict(length=16)),
    "dot": (dict(bias="dot"), dict(length=16)),
    "no residual": (dict(architecture=LINE | {"residual": False}), dict(length=16, d_key=20)),
    "odd chunks": (dict(chunk_size=5), dict(length=18)),
    "many chunks": (dict(chunk_size=4, algorithm="momentum", retention="l2"), dict(length=68, heads=1)),
    "wide": (dict(), dict(length=16, d_key=32, d_value=32)),
}
"""Fields of a spec (TTT-Linear at chunk size 8 otherwise, unbounded) and of a problem."""

cases = pytest.mark.parametrize("name", CASES)


def drawn(name: str, **other: Any) -> Problem:
    """Rates small enough for stale gradients behind a norm."""
    fields, sizes = CASES[name]
    spec = MirasSpec.make(**{**TTT, "chunk_size": 8, "step_bound": None} | fields)
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 2} | sizes | other
    p = problem(spec, **arguments)
    return replace(p, gates={g: 0.2 * x if g == "lr" else x for g, x in p.gates.items()})


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    agrees(drawn(name), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("length", [320, 777, 4096])
@pytest.mark.parametrize("name", ["ttt_linear", "as the paper", "bounded", "momentum", "decayed mini-batches"])
def test_tiles_on_device(name: str, length: int, chunk: int) -> None:
    """Real sizes at bfloat16, whole chunks or not, and the same bits twice."""
    p = drawn(name, d_key=64, d_value=64, length=length)
    # behind a norm a memory that decays to nothing would leave nothing but rounding
    small = {"lr": 0.05, "log_decay": 0.02}
    gates = {g: small.get(g, 1.0) * x for g, x in p.gates.items()}
    p = replace(p, spec=replace(p.spec, chunk_size=chunk), gates=gates)
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


def test_split_and_masked() -> None:
    """A sequence cut inside a chunk, or with tokens left out."""
    p = cast(drawn("ttt_linear", length=21, batch=2), DTYPE, DEVICE)
    y, state = p.run("kernel")
    head, after = p.slice(0, 11).run("kernel")
    tail, end = replace(p.slice(11, 21), state=after).run("kernel")
    close(torch.cat([head, tail], 1), y)
    for n, w in state.memory.items():
        close(end.memory[n], w)
        close(end.slots[n], state.slots[n])
    mask = torch.ones(2, 21, dtype=torch.bool, device=DEVICE)
    mask[0, :4] = mask[1, 9] = False
    masked, _ = replace(p, mask=mask).run("kernel")
    alone, _ = p.rows([0]).slice(4, 21).run("kernel")
    close(masked[:1, 4:], alone)


def test_one_token_after_others() -> None:
    p = cast(drawn("ttt_linear", length=9), DTYPE, DEVICE)
    with torch.no_grad():
        y, _ = p.run("kernel")
        _, state = p.slice(0, 8).run("kernel")
        one, _ = replace(p.slice(8, 9), state=state).run("kernel")
    close(one, y[:, 8:])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break() -> None:
    compiles(cast(drawn("ttt_linear", length=16), DTYPE, DEVICE), "q", "k", "state/memory/b_1")


def test_the_zoo_s_entry_and_who_is_refused() -> None:
    where = (torch.device("cpu"), torch.float32)
    spec = zoo.spec("ttt_linear")
    plan = AssociativeMemory(spec, "kernel").plan(16, 16, where=where)
    assert plan.kernel is not None and plan.kernel.name == "matrix behind a norm"
    for fields, width, reason in (
        (dict(), 128, "a program holds whole rows"),
        (dict(), 24, "a program holds whole rows"),
        (dict(step_bound=1.0), 16, "rates of their own"),
        (dict(architecture=LINE | {"affine": True}), 16, "a fast gain and shift"),
        (dict(algorithm="aggmo"), 16, "there is room for one"),
    ):
        refused = MirasSpec.make(**{**TTT, "chunk_size": 16, "step_bound": None} | fields)
        with pytest.raises(ValueError, match=reason):
            AssociativeMemory(refused, "kernel").plan(width, width, where=where)

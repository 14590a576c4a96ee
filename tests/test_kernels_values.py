"""Triton kernels of matrix memories with a decay per value channel: what PyTorch computes in float64, gradients included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from miras import AssociativeMemory, MirasSpec
from miras.kernels import Dims, trust, values
from miras.testing import problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, same_bits_twice

BY_VALUE = {"name": "l2", "per": "value"}
DECAYED = BY_VALUE | {"gradient_at": "decayed"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "free": (dict(bias="dot"), dict(length=37, d_value=24)),
    "free, read before the write": (dict(bias="dot", read="previous", chunk_size=1), dict(length=17, d_key=24)),
    "free, rates per value channel": (
        dict(bias="dot", retention=DECAYED, algorithm={"name": "gd", "per": "value"}, chunk_size=7),
        dict(length=17),
    ),
    "chunks": (dict(), dict(length=16, heads=2)),
    "odd chunks": (dict(chunk_size=21, read="previous"), dict(length=42, d_key=20, d_value=24)),
    "rates per key channel": (dict(bias="feedback", algorithm={"name": "gd", "per": "key"}), dict(length=16)),
    "implicit": (dict(chunk_size=32, algorithm="implicit"), dict(length=64)),
    "dgd": (dict(chunk_size=5, algorithm="dgd"), dict(length=12)),
    "two steps": (dict(algorithm={"name": "multi_step", "count": 2}), dict(length=9)),
}
"""Fields of a spec (the delta rule in chunks of 8 otherwise) and of a problem."""

cases = pytest.mark.parametrize("name", CASES)


def spec(**fields: Any) -> MirasSpec:
    given: dict[str, Any] = dict(architecture="matrix", bias="l2", algorithm="gd", retention=BY_VALUE, chunk_size=8)
    return MirasSpec.make(**given | fields)


def drawn(name: str, **other: Any) -> Problem:
    fields, sizes = CASES[name]
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 1} | sizes | other
    return problem(spec(**fields), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    agrees(drawn(name), torch.float32, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
def test_tiles_of_64_tokens() -> None:
    """Four blocks a tile."""
    agrees(drawn("free", length=64, d_key=64, d_value=64, heads=1), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("length", [777, 4096])
@pytest.mark.parametrize("name", ["free", "chunks"])
def test_tiles_on_device(name: str, length: int, d: int) -> None:
    """Real sizes at bfloat16, whole tiles or not, and the same bits twice."""
    p = drawn(name, d_key=d, d_value=d, length=length)
    # steps small enough for 64 stale gradients, and decays that leave something of a tile
    weak = {"lr": 0.2, "log_decay": 0.05}
    p = replace(p, spec=replace(p.spec, chunk_size=64), gates={g: weak[g] * x for g, x in p.gates.items()})
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


@pytest.mark.parametrize("name", ["free", "implicit"])
@pytest.mark.parametrize("strength", [1e-4, 40.0])
def test_slow_and_fast_decays(name: str, strength: float) -> None:
    """Channels side by side that keep everything and nothing: 40 to the power of a tile is far outside of float32."""
    p = drawn(name, length=32, heads=1)
    decay = p.gates["log_decay"].clone()
    decay[..., ::2] *= strength
    agrees(replace(p, gates=p.gates | {"log_decay": decay}), DTYPE, DEVICE)


@pytest.mark.parametrize("name", ["free", "chunks"])
def test_in_pieces(name: str) -> None:
    """A sequence cut inside a chunk and a tile."""
    p = cast(drawn(name, length=21, heads=1), DTYPE, DEVICE)
    y, state = p.run("kernel")
    head, after = p.slice(0, 11).run("kernel")
    tail, end = replace(p.slice(11, 21), state=after).run("kernel")
    close(torch.cat([head, tail], 1), y)
    close(end.memory["w"], state.memory["w"])


def test_without_gradients() -> None:
    """And then one token more."""
    p = cast(drawn("free", length=34, heads=1, d_value=16), DTYPE, DEVICE)
    wanted, _ = p.run("kernel")
    with torch.no_grad():
        head, after = p.slice(0, 33).run("kernel")
        last, _ = replace(p.slice(33, 34), state=after).run("kernel")
    close(torch.cat([head, last], 1), wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break() -> None:
    compiles(cast(drawn("chunks", length=8), DTYPE, DEVICE), "q", "k", "v", "gate.log_decay")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device tries them at their first use")
@pytest.mark.parametrize(("bias", "kernel"), [("dot", values.TOKENS), ("l2", values.CHUNKS)])
def test_the_first_use_can_try_them(bias: str, kernel: Any) -> None:
    assert trust.error(kernel, spec(bias=bias), Dims(16, 16), torch.device("cpu"), torch.float32, 1) < 1e-4


REFUSED: dict[str, dict[str, Any]] = {
    "keeps a state beside the memory": dict(algorithm="momentum"),
    "that is not affine in the prediction": dict(bias="huber"),
    "no decay per value channel": dict(retention={"name": "l2", "per": "key"}),
    "the gradient is taken at a decayed state": dict(retention=DECAYED),
    "neither per head nor per key channel": dict(algorithm={"name": "gd", "per": "value"}),
    "coupling differs by channel": dict(chunk_size=1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_who_is_refused_and_why(reason: str) -> None:
    refused = spec(**REFUSED[reason])
    shapes = AssociativeMemory(refused).shapes(16, 16)
    assert reason in (values.chunks(refused, shapes, 1) or "") and values.tokens(refused, shapes, 1)

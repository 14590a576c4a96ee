"""Triton kernels of matrix memories with a decay per key channel: what PyTorch computes in float64, gradients included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.engine.plan import plan
from miras.kernels import Dims, channels, trust
from miras.testing import problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, same_bits_twice

BY_KEY = {"name": "l2", "per": "key"}
DECAYED = BY_KEY | {"gradient_at": "decayed"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kda": (dict(retention=DECAYED), dict(length=70)),
    "kda, read before the write": (dict(retention=DECAYED, read="previous"), dict(length=37, d_key=24, d_value=20)),
    "gradient before the decay": (dict(), dict(length=37, d_key=20, d_value=24)),
    "both before": (dict(read="previous"), dict(length=33)),
    "rates per key channel": (dict(retention=DECAYED, algorithm={"name": "gd", "per": "key"}), dict(length=33)),
    "implicit": (dict(retention=DECAYED, algorithm="implicit"), dict(length=33)),
    "dgd": (dict(algorithm="dgd"), dict(length=33)),
    "feedback": (dict(retention=DECAYED, bias="feedback"), dict(length=33)),
    "two steps a token": (
        dict(bias="feedback", algorithm={"name": "multi_step", "count": 2, "per": "key"}),
        dict(length=35, d_key=24),
    ),
    "two steps in chunks": (dict(algorithm={"name": "multi_step", "count": 2}, chunk_size=8), dict(length=17)),
    "gla": (dict(bias="dot"), dict(length=70, d_value=40)),
    "gla, read before the write": (dict(bias="dot", read="previous", chunk_size=7), dict(length=33, d_key=24)),
    "chunks": (dict(chunk_size=8), dict(length=32)),
    "odd chunks": (dict(chunk_size=21, read="previous"), dict(length=63, d_key=20, d_value=24)),
    "implicit in chunks": (dict(chunk_size=32, algorithm="implicit"), dict(length=64)),
    "dgd in chunks": (dict(chunk_size=5, algorithm="dgd"), dict(length=17)),
}
"""Fields of a spec (the delta rule otherwise) and of a problem."""

cases = pytest.mark.parametrize("name", CASES)


def drawn(name: str, **other: Any) -> Problem:
    fields, sizes = CASES[name]
    given: dict[str, Any] = dict(architecture="matrix", bias="l2", algorithm="gd", retention=BY_KEY, chunk_size=1)
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 2} | sizes | other
    return problem(MirasSpec.make(**given | fields), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    agrees(drawn(name), torch.float32, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
def test_tiles_of_64_tokens() -> None:
    """Four blocks a tile, for queries and keys."""
    agrees(drawn("kda", length=70, d_key=64, d_value=64, heads=1), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("length", [777, 4096])
@pytest.mark.parametrize("name", ["kda", "gradient before the decay", "gla", "chunks"])
def test_tiles_on_device(name: str, length: int, d: int) -> None:
    """Real sizes at bfloat16, whole tiles or not, and the same bits twice."""
    p = drawn(name, d_key=d, d_value=d, length=length)
    # steps small enough for 64 stale gradients, and decays that leave something of a tile
    weak = {"lr": 0.2 if p.spec.chunk_size > 1 else 1.0, "log_decay": 0.05}
    chunk = 64 if p.spec.chunk_size > 1 else 1
    p = replace(p, spec=replace(p.spec, chunk_size=chunk), gates={g: weak[g] * x for g, x in p.gates.items()})
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


@pytest.mark.parametrize("name", ["kda", "gla", "chunks"])
@pytest.mark.parametrize("strength", [1e-4, 40.0])
def test_slow_and_fast_decays(name: str, strength: float) -> None:
    """Channels side by side that keep everything and nothing: 40 to the power of a tile is far outside of float32."""
    p = drawn(name, length=32)
    decay = p.gates["log_decay"].clone()
    decay[..., ::2] *= strength
    agrees(replace(p, gates=p.gates | {"log_decay": decay}), DTYPE, DEVICE)


@pytest.mark.parametrize("name", ["kda", "chunks"])
def test_in_pieces(name: str) -> None:
    """A sequence cut inside a chunk and a tile."""
    p = cast(drawn(name, length=21), DTYPE, DEVICE)
    y, state = p.run("kernel")
    head, after = p.slice(0, 11).run("kernel")
    tail, end = replace(p.slice(11, 21), state=after).run("kernel")
    close(torch.cat([head, tail], 1), y)
    close(end.memory["w"], state.memory["w"])


def test_without_gradients() -> None:
    """And then one token more."""
    p = cast(drawn("kda", length=34), DTYPE, DEVICE)
    wanted, _ = p.run("kernel")
    with torch.no_grad():
        head, after = p.slice(0, 33).run("kernel")
        last, _ = replace(p.slice(33, 34), state=after).run("kernel")
    close(torch.cat([head, last], 1), wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["kda", "gla"])
def test_compiled_without_a_graph_break(name: str) -> None:
    compiles(cast(drawn(name, length=20), DTYPE, DEVICE), "q", "k", "v", "gate.log_decay")


@pytest.mark.parametrize("entry", ["gla", "rwkv6", "hgrn2", "kda", "rwkv7"])
def test_published_memories_take_them(entry: str) -> None:
    spec = zoo.ENTRIES[entry].spec
    shapes = AssociativeMemory(spec).shapes(16, 16)
    assert channels.TOKENS.supports(spec, shapes, 1) is None and channels.TOKENS.proven
    assert plan(spec, shapes, 1, None, None, Dims(16, 16), (torch.device("cpu"), torch.float32)).path == "exact"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device tries them at their first use")
@pytest.mark.parametrize("entry", ["kda", "rwkv7"])
def test_the_first_use_can_try_them(entry: str) -> None:
    """Several steps a token and gates per channel included."""
    spec = zoo.ENTRIES[entry].spec
    assert trust.error(channels.TOKENS, spec, Dims(16, 16), torch.device("cpu"), torch.float32, 1) < 1e-4


REFUSED: dict[str, dict[str, Any]] = {
    "keeps a state beside the memory": dict(algorithm="momentum"),
    "that is not affine in the prediction": dict(bias="huber"),
    "no decay per key channel": dict(retention="l2"),
    "the gradient is taken at a decayed state": dict(retention=DECAYED, chunk_size=8),
    "neither per head nor per key channel": dict(algorithm={"name": "gd", "per": "value"}, bias="dot"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_who_is_refused_and_why(reason: str) -> None:
    given: dict[str, Any] = dict(architecture="matrix", bias="l2", algorithm="gd", retention=BY_KEY, chunk_size=8)
    spec = MirasSpec.make(**given | REFUSED[reason])
    assert reason in (channels.chunks(spec, AssociativeMemory(spec).shapes(16, 16), 1) or "")

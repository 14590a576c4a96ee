"""Kernels for one token at a time: what the token loop computes in float64, from any phase of a chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from miras import AssociativeMemory, MemoryState, MirasSpec
from miras.testing import TOLERANCE, problem, relative
from miras.testing.problems import Problem

DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
DECAYED = {"name": "l2", "gradient_at": "decayed"}

MATRIX: dict[str, dict[str, Any]] = {
    "huber": {"bias": "huber"},
    "huber per channel, free": {"bias": {"name": "huber", "per": "value"}, "algorithm": "gd", "step_bound": None},
    "yaad": {"bias": "yaad", "algorithm": "nesterov"},
    "log cosh before its write": {"bias": "log_cosh", "algorithm": "qhm", "read": "previous"},
    "three slots": {"bias": "huber", "algorithm": "aggmo"},
    "dgd in chunks": {"bias": "l2", "algorithm": "dgd"},
    "features": {"architecture": "slots", "bias": "huber", "algorithm": "gd"},
    "gated delta rule": {"bias": "l2", "algorithm": "gd", "retention": DECAYED, "chunk_size": 1},
    "delta rule with momentum": {"bias": "l2", "chunk_size": 1, "read": "previous"},
    "longhorn": {"bias": "l2", "algorithm": "implicit", "retention": "none", "chunk_size": 1},
    "linear attention": {"bias": "dot", "algorithm": "gd", "chunk_size": 7},
}
MLP: dict[str, dict[str, Any]] = {
    "titans": {"bias": "l2", "step_bound": None},
    "bounded": {"bias": "huber", "architecture": {"name": "mlp", "expansion": 2, "activation": "silu"}},
    "per channel": {"bias": {"name": "huber", "per": "value"}, "algorithm": "gd"},
    "plain": {"bias": "dot", "architecture": {"name": "mlp", "expansion": 3, "norm": False, "residual": False}},
    "chunks of 128": {"bias": "l2", "chunk_size": 128},
    "padded": {"bias": {"name": "huber", "per": "value"}, "architecture": {"name": "mlp", "expansion": 2}},
    "padded, with biases": {"bias": "l2", "architecture": {"name": "mlp", "expansion": 2, "bias": True}},
}
SPECS = {n: {"architecture": "matrix", "algorithm": "momentum", "chunk_size": 4} | f for n, f in MATRIX.items()}
SPECS |= {
    f"perceptron, {n}": {"architecture": "mlp", "algorithm": "momentum", "chunk_size": 16} | f for n, f in MLP.items()
}


def drawn(name: str, length: int = 15) -> Problem:
    spec = MirasSpec.make(**SPECS[name])
    key = 12 if "padded" in name else 16
    wide = 32 if name == "perceptron, plain" else key if spec.architecture.name == "mlp" else 20
    return problem(spec, length=length, d_key=key, d_value=wide, batch=2, heads=2)


def there(p: Problem, dtype: torch.dtype) -> Problem:
    """Operands in that dtype on the device; gates and state in float32."""
    gates = {g: x.to(DEVICE, torch.float32) for g, x in p.gates.items()}
    state = p.state.map(lambda x: x.to(DEVICE, torch.float32))
    return replace(p.map(lambda x: x.to(DEVICE, dtype)), gates=gates, state=state)


@torch.no_grad()
def stepped(p: Problem) -> tuple[Tensor, MemoryState]:
    """Every token by a call of its own."""
    state, answers = p.state, []
    for t in range(p.q.shape[1]):
        y, state = replace(p.slice(t, t + 1), state=state).run("kernel")
        answers.append(y)
    return torch.cat(answers, 1), state


@pytest.mark.parametrize("name", SPECS)
def test_token_by_token(name: str) -> None:
    """Through the end of a chunk, from a state that the token loop left."""
    start = 15 if name.startswith("perceptron") else 3
    p = drawn(name, start + 3)
    exact = replace(p.map(lambda x: x.to(DTYPE).double()), state=p.state.map(lambda x: x.float().double()))
    _, before = exact.slice(0, start).run("reference")
    rest = replace(exact.slice(start, p.q.shape[1]), state=before.detach())
    wanted, end = rest.run("reference")
    y, state = stepped(there(rest, DTYPE))
    limit = TOLERANCE["kernel"][DTYPE]
    assert relative(y.cpu().double(), wanted) <= limit
    assert state.phase == end.phase
    for n, x in end.tensors().items():
        if x.is_floating_point():
            assert relative(state.tensors()[n].cpu().double(), x) <= limit, n


def test_a_stretch_and_then_tokens() -> None:
    """What the kernels of whole chunks leave is what this one takes up."""
    p = there(drawn("huber"), DTYPE)
    whole, end = p.run("kernel")
    with torch.no_grad():
        _, state = p.slice(0, 13).run("kernel")
    y, after = stepped(replace(p.slice(13, p.q.shape[1]), state=state))
    assert relative(y.float(), whole[:, 13:].float()) <= TOLERANCE["kernel"][DTYPE]
    assert relative(after.memory["w"], end.memory["w"]) <= TOLERANCE["kernel"][DTYPE]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break() -> None:
    p = there(drawn("perceptron, bounded"), DTYPE).slice(0, 1)
    core = AssociativeMemory(p.spec, "kernel")
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")
        got, wanted = compiled(p.q, p.k, p.v, p.gates, p.state)[0], core(p.q, p.k, p.v, p.gates, p.state)[0]
    assert torch.equal(got, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["delta rule with momentum", "perceptron, bounded"])
def test_replayed_from_a_graph(name: str) -> None:
    """One token recorded once and replayed on other numbers."""
    p = there(drawn(name), torch.bfloat16)
    core, first = AssociativeMemory(p.spec, "kernel"), p.slice(0, 1)
    inputs = [x.clone() for x in (first.q, first.k, first.v)]

    def go() -> tuple[Tensor, MemoryState]:
        q, k, v = inputs
        with torch.no_grad():
            return core(q, k, v, first.gates, p.state)

    go()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, state = go()
    for x in inputs:
        x.mul_(0.5)
    graph.replay()
    wanted, end = go()
    assert torch.equal(y, wanted)
    assert all(torch.equal(state.memory[n], w) for n, w in end.memory.items())

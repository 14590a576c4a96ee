"""Kernels of the perceptron on a device, in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory
from miras.architectures import MLP
from miras.kernels import (
    Dims,
    assembler,
    mlp_links,
    trust,
)
from miras.testing.problems import problem
from tests.perceptrons import SPECS, agree, moved, run


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        *("titans", "bounded", "at the anchor", "moneta", "moneta, no bound", "memora", "memora, lag"),
        *("biases", "biases, bounded", "ttt", "ttt, bounded", "gated", "gated, bounded", "gated, gd"),
        *("gains, bounded", "gains and biases", "gains and biases, bounded"),
    ],
)
@pytest.mark.parametrize("width", [32, 64])
def test_bfloat16(name: str, width: int) -> None:
    """At a rate at which the memory does not amplify rounding."""
    spec = replace(SPECS[name], architecture=replace(SPECS[name].architecture, expansion=4), chunk_size=width)
    p = problem(spec, length=4 * width, d_key=width, d_value=width)
    p = replace(p.map(lambda x: x.bfloat16().double()), gates=p.gates | {"lr": 1e-3 * p.gates["lr"]})
    agree(p, torch.bfloat16)
    first, again = (run(moved(p, torch.bfloat16), "kernel") for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["titans", "bounded", "memora", "ttt"])
def test_short_chunks_in_bfloat16(name: str) -> None:
    spec = replace(SPECS[name], architecture=replace(SPECS[name].architecture, expansion=4), chunk_size=16)
    p = problem(spec, length=128, d_key=64, d_value=64)
    agree(replace(p.map(lambda x: x.bfloat16().double()), gates=p.gates | {"lr": 1e-3 * p.gates["lr"]}), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["titans", "bounded"])
def test_a_last_chunk_in_bfloat16(name: str) -> None:
    spec = replace(SPECS[name], architecture=replace(SPECS[name].architecture, expansion=4), chunk_size=64)
    p = problem(spec, length=133, d_key=64, d_value=64)
    agree(replace(p.map(lambda x: x.bfloat16().double()), gates=p.gates | {"lr": 1e-3 * p.gates["lr"]}), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64])
def test_thresholds_far_from_errors(width: int) -> None:
    """Where no rounding decides which side of one an error is on."""
    spec = replace(SPECS["biases"], architecture=MLP(expansion=4, bias=True), chunk_size=width)
    p = problem(spec, length=4 * width, d_key=width, d_value=width).map(lambda x: x.bfloat16().double())
    agree(replace(p, gates=p.gates | {"lr": 1e-3 * p.gates["lr"], "delta": 100 * p.gates["delta"]}), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64])
def test_even_weights_keep_their_digits(width: int) -> None:
    """A norm divides by how little answers differ: rounding weights would cost gradients of queries two thirds of their size."""
    spec = zoo.spec("memora", form="recommended", read="anchor", chunk_size=width)
    error = trust.error(mlp_links.KERNEL, spec, Dims(width, width), torch.device("cuda"), torch.bfloat16)
    assert error <= 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", ["titans", "bounded", "moneta", "memora"])
def test_tiles_in_bfloat16(monkeypatch: pytest.MonkeyPatch, name: str, narrow: bool) -> None:
    if narrow and (reason := assembler.missing(torch.device("cuda"))):
        pytest.skip(reason)
    monkeypatch.setattr(assembler, "sound", lambda: narrow)
    test_bfloat16(name, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["titans", "bounded", "gd"])
@pytest.mark.parametrize(("chunk", "width"), [(64, 128), (128, 32), (128, 64), (256, 64), (128, 128)])
def test_wide_ones_in_bfloat16(name: str, chunk: int, width: int) -> None:
    spec = replace(SPECS[name], architecture=replace(SPECS[name].architecture, expansion=4), chunk_size=chunk)
    p = problem(spec, length=max(256, 2 * chunk), d_key=width, d_value=width, batch=1)
    p = replace(p.map(lambda x: x.bfloat16().double()), gates=p.gates | {"lr": 1e-3 * p.gates["lr"]})
    agree(p, torch.bfloat16)
    first, again = (run(moved(p, torch.bfloat16), "kernel") for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)


@pytest.mark.gpu
def test_tried_while_it_is_compiled(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real trial inside of a compiler, of a memory that nobody has used before."""
    found: list[float] = []
    gd = replace(SPECS["gd"], step_bound=1.0 + seed)
    spec = replace(gd, architecture=MLP(expansion=3, activation="tanh"), chunk_size=32)
    monkeypatch.setattr(trust.verdicts, "kept", lambda trial, *_: found.append(trial()) or found[-1])
    p = moved(problem(spec, length=64, d_key=32, d_value=32), torch.bfloat16)
    core = AssociativeMemory(spec)
    torch.compiler.reset()
    y, _ = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")(p.q, p.k, p.v, p.gates, p.state)
    assert len(found) == 1 and found[0] < trust.WRONG
    assert torch.equal(y, core(p.q, p.k, p.v, p.gates, p.state)[0])

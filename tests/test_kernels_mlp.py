"""Kernels of the perceptron against the token loop in float64: answers, states and the gradients of everything.

Without a device they run in Triton's interpreter, which computes float32 operands only.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.architectures import MLP, GatedMLP
from miras.kernels import (
    KERNELS,
    Dims,
    Kernel,
    assembler,
    choose,
    interpreted,
    mlp,
    mlp_biases,
    mlp_gains,
    mlp_links,
    mlp_wide,
    trust,
)
from miras.kernels._coefficients import compact
from miras.retentions import Lq
from miras.testing.problems import problem
from miras.testing.tolerances import TOLERANCE, relative
from tests.perceptrons import DEVICE, SPECS, TITANS, WIDE, agree, moved

INTERPRETED = torch.device("cpu"), torch.float32


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_the_token_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("lp", "gains"):  # which magnify what differences of sums round; no device takes those for float32
        monkeypatch.setattr(compact, "narrow", lambda dtype: dtype != torch.float32)
    width = 32 if name in ("plain", "gated") else 16
    agree(problem(SPECS[name], length=48, d_key=16, d_value=width, batch=1, heads=1), torch.float32)


@pytest.mark.parametrize("name", WIDE)
def test_wide_ones_agree_with_the_token_loop(name: str) -> None:
    spec, length, width = WIDE[name]
    agree(problem(spec, length=length, d_key=width, d_value=width, batch=1, heads=1), torch.float32)


def test_blocks_of_a_chunk_stay_in_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from miras.kernels._mlp import launch

    monkeypatch.setattr(launch, "FEWEST", 4)
    monkeypatch.setattr(launch, "PROGRAMS", 5)
    spec = replace(SPECS["gd"], step_bound=1.0, chunk_size=128)
    agree(problem(spec, length=384, d_key=16, d_value=16, batch=1, heads=1), torch.float32)


def test_a_wrong_kernel_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    from miras.kernels._mlp import parts

    def error() -> float:
        return trust.error(mlp.KERNEL, SPECS["bounded"], Dims(16, 16), torch.device(DEVICE), torch.float32, 2)

    assert error() < TOLERANCE["kernel"][torch.float32]
    monkeypatch.setattr(parts, "gelu", parts.silu)
    assert error() > trust.WRONG


@pytest.mark.parametrize("name", ["bounded", "moneta", "memora", "biases, bounded", "gains, bounded", "gated, bounded"])
def test_groups_of_chunks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """More chunks than are kept at a time, the last group shorter than the others."""
    from miras.kernels._mlp import launch

    monkeypatch.setattr(launch, "FEWEST", 2)
    monkeypatch.setattr(launch, "PROGRAMS", 1)
    agree(problem(SPECS[name], length=80, d_key=16, d_value=16, batch=1, heads=1), torch.float32)


@pytest.mark.parametrize("name", ["gd", "gated, gd"])
def test_backward_changes_nothing_that_it_needs_again(name: str) -> None:
    """It may run twice, and either of its gradients may be missing."""
    p = moved(problem(SPECS[name], length=32, d_key=16, d_value=16, batch=1, heads=1), torch.float32)
    leafy, leaves = p.leaves()
    y, state = leafy.run("kernel")
    of = {"answers": y.square().sum(), "state": next(iter(state.memory.values())).square().sum()}
    first, again, other = (
        torch.autograd.grad(of[a], leaves["k"], retain_graph=True)[0] for a in ("answers", "answers", "state")
    )
    assert torch.equal(first, again)
    assert other.norm() > 0


@pytest.mark.parametrize("name", ["titans", "memora", "moneta at the anchor", "ttt", "gains and biases", "gated, gd"])
def test_any_phase_and_length(name: str) -> None:
    """Tokens around the whole chunks take the PyTorch path; the state goes from one to the other."""
    p = problem(SPECS[name], length=60, d_key=16, d_value=16, batch=1, heads=1)
    p = replace(p, gates=p.gates | {"lr": 0.3 * p.gates["lr"]})  # larger ones magnify float32's rounding on every path
    _, state = replace(p.slice(0, 5)).run("reference")
    agree(replace(p.slice(5, 60), state=state.detach()), torch.float32)


@pytest.mark.parametrize("name", ["titans", "bounded", "huber per channel", "gd"])
@pytest.mark.parametrize("length", [7, 41])
def test_a_last_chunk_that_is_not_whole(monkeypatch: pytest.MonkeyPatch, name: str, length: int) -> None:
    """Is computed by the kernel, and goes on where it stopped."""
    p = problem(SPECS[name], length=52, d_key=16, d_value=16, batch=2, heads=1)
    first, rest = p.slice(0, length), p.slice(length, 52)
    _y, state = moved(first, torch.float32).run("kernel")
    with monkeypatch.context() as alone:
        alone.setattr("miras.engine.run.factored", None)  # what PyTorch would take
        agree(first, torch.float32)
    _, wanted = first.run("reference")
    assert state.phase == wanted.phase == (length % 16,) * 2
    for n, t in wanted.tensors().items():
        if n != "phase":
            assert relative(state.tensors()[n].double(), t) <= TOLERANCE["kernel"][torch.float32], n
    agree(replace(rest, state=wanted.detach()), torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chunk_size": 24}, "chunk_size 24"),
        ({"algorithm": "aggmo"}, "slots"),
        ({"read": "previous"}, "read"),
        ({"retention": Lq()}, "link_at='chunk'"),
        ({"retention": Lq(form="exact")}, "form='paper'"),
        ({"retention": "kl"}, "read='anchor'"),
        ({"retention": Lq(link_at="chunk")}, "slot"),
        ({"architecture": MLP(expansion=64)}, "hidden width"),
        ({"architecture": MLP(depth=3)}, "perceptron of two matrices"),
        ({"architecture": MLP(depth=3, affine=True)}, "a fast gain and shift"),
        ({"architecture": MLP(affine=True), "retention": Lq()}, "link"),
        ({"architecture": GatedMLP(expansion=64)}, "gated perceptron: the hidden width 1024"),
        ({"architecture": MLP(bias=True), "algorithm": "aggmo"}, "slots"),
    ],
)
def test_says_why_not(change: dict[str, object], reason: str) -> None:
    spec = replace(TITANS, **change)  # type: ignore[arg-type]
    refused = AssociativeMemory(spec).plan(16, 16, 1, INTERPRETED).refused
    assert reason in refused["kernel"]


@pytest.mark.parametrize(
    ("spec", "kernel"),
    [
        (zoo.spec("titans_lmm"), mlp.KERNEL),
        (zoo.spec("titans_lmm", form="recommended"), mlp.KERNEL),
        (zoo.spec("yaad"), mlp.KERNEL),
        (zoo.spec("yaad", form="recommended"), mlp.KERNEL),
        (zoo.spec("yaad", bias={"norm": "rms"}), mlp_links.KERNEL),
        (zoo.spec("moneta"), mlp_links.KERNEL),
        (zoo.spec("memora", read="anchor"), mlp_links.KERNEL),
        (zoo.spec("memora", form="recommended", read="anchor"), mlp_links.KERNEL),
        (zoo.spec("ttt_mlp"), mlp_biases.KERNEL),
        (zoo.spec("ttt_mlp", form="recommended"), mlp_biases.KERNEL),
        (zoo.spec("ttt_mlp", architecture={"affine": True}), mlp_gains.KERNEL),
        (zoo.spec("yaad", architecture={"affine": True}), mlp_gains.KERNEL),
    ],
)
def test_computes_published_memories(spec: MirasSpec, kernel: Kernel) -> None:
    shapes = AssociativeMemory(spec).shapes(64, 64)
    assert [k for k in KERNELS if k.whole is None and k.supports(spec, shapes, 1) is None] == [kernel]


@pytest.mark.parametrize(("chunk", "width"), [(128, 64), (256, 128), (64, 128)])
def test_wide_ones_run_unasked(monkeypatch: pytest.MonkeyPatch, chunk: int, width: int) -> None:
    memory, dims = AssociativeMemory(zoo.spec("titans_lmm", chunk_size=chunk)), Dims(width, width)
    monkeypatch.setattr(mlp_wide, "_room", lambda _: None)
    monkeypatch.setattr(assembler, "sound", lambda: True)
    where = torch.device("cuda"), torch.float32 if interpreted() else torch.bfloat16
    assert choose(memory.spec, memory.shapes(width, width), 1, dims, where) == mlp_wide.KERNEL


@pytest.mark.parametrize(("found", "reason"), [((14, 232448), "14 multiprocessors"), ((84, 101376), "shared memory")])
def test_programs_that_wait_for_each_other_have_room(
    monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], reason: str
) -> None:
    device = SimpleNamespace(multi_processor_count=found[0], shared_memory_per_block_optin=found[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert reason in str(mlp_wide._room(torch.device("cuda")))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["gd", "moneta", "gains and biases", "gated, gd"])
def test_compiled_without_a_graph_break(name: str) -> None:
    p = moved(problem(SPECS[name], length=16, d_key=16, d_value=16, batch=1, heads=1), torch.float32)
    core = AssociativeMemory(p.spec, "kernel")
    torch.compiler.reset()
    compiled = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")

    def gradient(call: Any) -> Tensor:
        leafy, leaves = p.leaves()
        y, state = call(leafy.q, leafy.k, leafy.v, leafy.gates, leafy.state)
        return torch.autograd.grad(y.square().sum() + sum(w.sum() for w in state.memory.values()), leaves["k"])[0]

    assert relative(gradient(compiled), gradient(core)) <= TOLERANCE["kernel"][torch.float32]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_hears_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run while a call is traced, in full: a kernel that is wrong is not in the graph."""
    p = moved(problem(SPECS["gd"], length=16, d_key=16, d_value=16, batch=1, heads=1), torch.float32)
    core = AssociativeMemory(p.spec, "kernel")
    asked: list[Any] = []

    def trusted(kernel: Kernel, *what: Any) -> None:
        asked.append((kernel, what, torch.compiler.is_compiling(), torch.ones(1).item()))

    monkeypatch.setattr(trust, "trusted", trusted)
    torch.compiler.reset()
    y, _ = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")(p.q, p.k, p.v, p.gates, p.state)
    assert asked == [(mlp.KERNEL, (p.spec, Dims(16, 16), p.q.device, torch.float32), False, 1.0)]
    wanted, _ = p.run("fused")
    assert relative(y, wanted) <= TOLERANCE["kernel"][torch.float32]

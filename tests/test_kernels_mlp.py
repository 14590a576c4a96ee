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

import interpreter

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.architectures import MLP, GatedMLP
from miras.biases import Huber, Lp, Yaad
from miras.engine.plan import Path
from miras.kernels import (
    KERNELS,
    Dims,
    Kernel,
    _compact,
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
from miras.retentions import KLDecay, Lq
from miras.state import MemoryState
from miras.testing import rounding
from miras.testing.problems import Problem, problem
from miras.testing.tolerances import TOLERANCE, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TITANS = MirasSpec.make(
    architecture="mlp", bias="l2", retention="l2", algorithm="momentum", chunk_size=16, step_bound=None
)
MONETA = replace(
    TITANS,
    architecture=MLP(expansion=3),
    bias=Lp(),
    retention=Lq(link_at="chunk"),
    algorithm="gd",
    step_bound=1.0,
)
PLAIN = MLP(expansion=2, norm=False)  # a norm divides by how little averages differ: float32 would be lost in it
MEMORA = replace(MONETA, architecture=PLAIN, bias="l2", retention="kl", read="anchor", step_bound=4.0)
SWIGLU = replace(TITANS, architecture=GatedMLP(expansion=2))
SPECS = {
    "titans": TITANS,
    "bounded": replace(TITANS, architecture=MLP(expansion=2), step_bound=1.0),
    "gd": replace(TITANS, architecture=MLP(expansion=1, activation="silu"), retention="none", algorithm="gd"),
    "huber": replace(TITANS, architecture=MLP(expansion=3, activation="gelu_tanh"), bias=Huber(), step_bound=1.0),
    "huber per channel": replace(TITANS, architecture=MLP(expansion=2), bias=Huber(per="value"), step_bound=1.0),
    "yaad": replace(TITANS, architecture=MLP(expansion=2), bias=Yaad(), algorithm="gd", step_bound=1.0),
    "lp": replace(TITANS, architecture=MLP(expansion=2, activation="relu2"), bias=Lp()),
    "yaad of means": replace(TITANS, architecture=MLP(expansion=2), bias=Yaad(norm="rms"), step_bound=1.0),
    "yaad of the largest": replace(
        TITANS, architecture=MLP(expansion=2), bias=Yaad(norm="max", per="value"), step_bound=1.0
    ),
    "at the anchor": replace(TITANS, architecture=MLP(expansion=2), read="anchor", step_bound=1.0),
    "moneta": MONETA,
    "moneta, mean": replace(MONETA, bias="l2", retention=Lq(q=2.5, norm="mean", link_at="chunk")),
    "moneta, no bound": replace(MONETA, architecture=MLP(expansion=2, activation="silu"), step_bound=None),
    "moneta at the anchor": replace(MONETA, retention=Lq(q=3), read="anchor", anchor_lag=3),
    "memora": MEMORA,
    "memora, lag": replace(MEMORA, retention=KLDecay(scale="size"), bias=Huber(per="value"), anchor_lag=1),
    "plain": replace(TITANS, architecture=MLP(expansion=2, norm=False, residual=False, activation="tanh"), bias="dot"),
    "biases": replace(TITANS, architecture=MLP(expansion=2, bias=True), bias=Huber(per="value")),
    "biases, gd": replace(
        TITANS, architecture=MLP(expansion=1, norm=False, bias=True), retention="none", algorithm="gd"
    ),
    "ttt": zoo.spec("ttt_mlp"),
    "ttt, decay": zoo.spec("ttt_mlp", retention="l2"),
    "ttt, bounded": zoo.spec("ttt_mlp", form="recommended"),
    "biases, bounded": replace(TITANS, architecture=MLP(expansion=2, bias=True), step_bound=1.0),
    "gains": replace(TITANS, architecture=MLP(expansion=3, affine=True), bias=Huber()),
    "gains, gd": replace(
        TITANS, architecture=MLP(expansion=2, residual=False, affine=True), bias=Huber(per="value"), algorithm="gd"
    ),
    "gains, bounded": replace(TITANS, architecture=MLP(expansion=2, affine=True), step_bound=1.0),
    "gains and biases": zoo.spec("ttt_mlp", architecture={"affine": True}),
    "gains and biases, bounded": zoo.spec("ttt_mlp", form="recommended", architecture={"affine": True}),
    "gated": SWIGLU,
    "gated, bounded": replace(
        SWIGLU,
        architecture=GatedMLP(expansion=2, residual=True, norm=True),
        bias=Huber(per="value"),
        step_bound=1.0,
    ),
    "gated, gd": replace(
        SWIGLU, architecture=GatedMLP(expansion=3, activation="gelu"), bias="dot", retention="none", algorithm="gd"
    ),
    "gated, yaad": replace(
        SWIGLU,
        architecture=GatedMLP(expansion=2, activation="gelu_tanh", norm=True),
        bias=Yaad(),
        algorithm="gd",
        step_bound=1.0,
    ),
}
HUBER = replace(TITANS, architecture=MLP(expansion=1), bias=Huber(), step_bound=1.0)
WIDE = {
    "chunks of 128": (replace(TITANS, architecture=MLP(expansion=2), chunk_size=128), 256, 16),
    "chunks of 256, huber": (replace(HUBER, chunk_size=256), 512, 16),
    "heads of 128": (replace(TITANS, architecture=MLP(expansion=1)), 32, 128),
    "heads of 128, gd": (SPECS["gd"], 32, 128),
    "heads of 128, huber": (HUBER, 32, 128),
}
"""Memory, tokens and width of a head of what `miras.kernels.mlp_wide` computes."""


@pytest.fixture(autouse=True, scope="module")
def _all_at_once() -> None:
    if DEVICE == "cpu":
        interpreter.install()


def run(p: Problem, path: Path) -> dict[str, Tensor]:
    """Answers, state and gradients of a random function of both, by name."""
    p, leaves = p.leaves()
    y, state = p.run(path)
    named = {"y": y, **{n: t for n, t in state.tensors().items() if n != "phase" and not n.startswith("anchor")}}
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in named.values()]
    grads = torch.autograd.grad(list(named.values()), list(leaves.values()), weights, allow_unused=True)
    return {n: t.detach() for n, t in named.items()} | {
        f"d {n}": torch.zeros_like(t) if d is None else d for (n, t), d in zip(leaves.items(), grads, strict=True)
    }


def moved(p: Problem, dtype: torch.dtype) -> Problem:
    """The same numbers on the device, in another dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    state = MemoryState.from_tensors({n: t.to(DEVICE) for n, t in p.state.map(lambda x: x.to(wide)).tensors().items()})
    return replace(p.map(lambda x: x.to(DEVICE, dtype)), state=state)


def agree(p: Problem, dtype: torch.dtype) -> None:
    """The kernel's numbers are the token loop's, or no further from them than twice what rounded products alone cost.

    Some errors lie so near a threshold that rounding takes them to its other side, where the gradients of that value and of that
    threshold jump: two in a thousand may be any number.
    """
    got, wanted = run(moved(p, dtype), "kernel"), run(p, "reference")
    got = {n: t.cpu().double() for n, t in got.items()}
    bad = {n: e for n, e in against(wanted, got).items() if not e <= TOLERANCE["kernel"][dtype]}
    if bad and dtype != torch.float32:
        least = rounding.cost(lambda: against(wanted, run(p, "factored")), dtype)
        bad = {n: (e, 2 * least[n]) for n, e in bad.items() if not e <= 2 * least[n]}
        if isinstance(p.spec.bias, Huber):
            few = {n: but_for_few(got[n], wanted[n]) for n in bad.keys() & {"d v", "d gate.delta"}}
            bad = {n: e for n, e in bad.items() if not few.get(n, 1.0) <= TOLERANCE["kernel"][dtype]}
    assert not bad, bad


def against(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    return {n: relative(got[n], t) for n, t in wanted.items()}


def but_for_few(got: Tensor, wanted: Tensor, few: float = 2e-3) -> float:
    """The relative error but for the worst numbers, two in a thousand."""
    apart = (got - wanted).abs().flatten().sort().values
    return (apart[: len(apart) - int(few * len(apart))].norm() / wanted.norm()).item()


INTERPRETED = torch.device("cpu"), torch.float32


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_the_token_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "lp":  # whose powers triple what differences of sums round, which no device takes for float32
        monkeypatch.setattr(_compact, "narrow", lambda dtype: dtype != torch.float32)
    width = 32 if name in ("plain", "gated") else 16
    agree(problem(SPECS[name], length=48, d_key=16, d_value=width, batch=1, heads=1), torch.float32)


@pytest.mark.parametrize("name", WIDE)
def test_wide_ones_agree_with_the_token_loop(name: str) -> None:
    spec, length, width = WIDE[name]
    agree(problem(spec, length=length, d_key=width, d_value=width, batch=1, heads=1), torch.float32)


def test_blocks_of_a_chunk_stay_in_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from miras.kernels import _mlp_launch

    monkeypatch.setattr(_mlp_launch, "FEWEST", 4)
    monkeypatch.setattr(_mlp_launch, "PROGRAMS", 5)
    spec = replace(SPECS["gd"], step_bound=1.0, chunk_size=128)
    agree(problem(spec, length=384, d_key=16, d_value=16, batch=1, heads=1), torch.float32)


def test_a_wrong_kernel_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    from miras.kernels import _mlp_parts

    def error() -> float:
        return trust.error(mlp.KERNEL, SPECS["bounded"], Dims(16, 16), torch.device(DEVICE), torch.float32, 2)

    assert error() < TOLERANCE["kernel"][torch.float32]
    monkeypatch.setattr(_mlp_parts, "gelu", _mlp_parts.silu)
    assert error() > trust.WRONG


@pytest.mark.parametrize("name", ["bounded", "moneta", "memora", "biases, bounded", "gains, bounded", "gated, bounded"])
def test_groups_of_chunks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """More chunks than are kept at a time, the last group shorter than the others."""
    from miras.kernels import _mlp_launch

    monkeypatch.setattr(_mlp_launch, "FEWEST", 2)
    monkeypatch.setattr(_mlp_launch, "PROGRAMS", 1)
    agree(problem(SPECS[name], length=80, d_key=16, d_value=16, batch=1, heads=1), torch.float32)


@pytest.mark.parametrize("name", ["yaad", "gated, gd"])
def test_what_is_kept_of_the_last_group(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from miras.kernels import _mlp_launch

    monkeypatch.setattr(_mlp_launch, "FEWEST", 1)
    monkeypatch.setattr(_mlp_launch, "PROGRAMS", 1)
    monkeypatch.setattr(_mlp_launch, "KEPT", 3)
    agree(problem(SPECS[name], length=48, d_key=16, d_value=16, batch=1, heads=1), torch.float32)


@pytest.mark.parametrize("name", ["gd", "gated, gd"])
def test_kept_states_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nor does backward change them; either of its gradients may be missing."""
    from miras.kernels import _mlp_launch

    p = moved(problem(SPECS[name], length=32, d_key=16, d_value=16, batch=1, heads=1), torch.float32)
    monkeypatch.setattr(_mlp_launch, "KEPT", 1)

    def gradients(*asked: str) -> list[Tensor]:
        leafy, leaves = p.leaves()
        y, state = leafy.run("kernel")
        of = {"answers": y.square().sum(), "state": next(iter(state.memory.values())).square().sum()}
        return [torch.autograd.grad(of[a], leaves["k"], retain_graph=True)[0] for a in asked]

    first, again, other = gradients("answers", "answers", "state")
    monkeypatch.setattr(_mlp_launch, "KEPT", 0)
    [wanted] = gradients("answers")
    assert torch.equal(first, wanted)
    assert torch.equal(again, wanted)
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
    assert [k for k in KERNELS if k.supports(spec, shapes, 1) is None] == [kernel]


@pytest.mark.parametrize(("chunk", "width"), [(128, 64), (256, 128), (64, 128)])
def test_wide_ones_only_on_request(monkeypatch: pytest.MonkeyPatch, chunk: int, width: int) -> None:
    memory, dims = AssociativeMemory(zoo.spec("titans_lmm", chunk_size=chunk)), Dims(width, width)
    monkeypatch.setattr(mlp_wide, "_room", lambda _: None)
    monkeypatch.setattr(assembler, "sound", lambda: True)
    where = torch.device("cuda"), torch.float32 if interpreted() else torch.bfloat16
    arguments = memory.spec, memory.shapes(width, width), 1, dims, where
    assert choose(*arguments, forced=True) == mlp_wide.KERNEL
    assert "has not passed its tests" in str(choose(*arguments))


@pytest.mark.parametrize(("found", "reason"), [((14, 232448), "14 multiprocessors"), ((84, 101376), "shared memory")])
def test_programs_that_wait_for_each_other_have_room(
    monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], reason: str
) -> None:
    device = SimpleNamespace(multi_processor_count=found[0], shared_memory_per_block_optin=found[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert reason in str(mlp_wide._room(torch.device("cuda")))


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


@pytest.mark.gpu
def test_tried_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real trial inside of a compiler, of a memory that nobody has used before."""
    found: list[float] = []
    spec = replace(SPECS["gd"], architecture=MLP(expansion=3, activation="tanh"), chunk_size=32)
    monkeypatch.setattr(trust.verdicts, "kept", lambda trial, *_: found.append(trial()) or found[-1])
    p = moved(problem(spec, length=64, d_key=32, d_value=32), torch.bfloat16)
    core = AssociativeMemory(spec)
    torch.compiler.reset()
    y, _ = torch.compile(core.__call__, fullgraph=True, backend="aot_eager")(p.q, p.k, p.v, p.gates, p.state)
    assert len(found) == 1 and found[0] < trust.WRONG
    assert torch.equal(y, core(p.q, p.k, p.v, p.gates, p.state)[0])

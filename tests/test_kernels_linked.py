"""A matrix under an elementwise link in Triton kernels: what the token loop computes, interpreted or (``gpu``) on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from miras import AssociativeMemory, Memory, MirasSpec
from miras.engine.weights import anchor_weights
from miras.gates import Gate
from miras.kernels import links, trust
from miras.kernels.linked import KERNEL
from miras.kernels.table import Dims
from miras.retentions import Context, Retention
from miras.testing import TOLERANCE, problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, errors, results, same_bits_twice, wide

LOW = {"name": "exponentiated", "limit": 0.05}
"""A limit that accumulators run into."""

SMOOTH = {"name": "elastic_net", "smooth": True}
PROXIMAL = {"name": "elastic_net", "form": "proximal"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "logistic": (dict(retention="logistic"), dict(length=18, d_key=20)),
    "logistic, bounded": (dict(retention="logistic", bias="huber", step_bound=1.0, algorithm="gd"), dict(length=21)),
    "tanh": (dict(retention="tanh", algorithm="gd"), dict(length=21, d_value=24)),
    "tanh, huber": (dict(retention="tanh", bias="huber", step_bound=1.0), dict(length=24, d_key=8, d_value=20)),
    "tanh, huber per channel": (dict(retention="tanh", bias={"name": "huber", "per": "value"}), dict(length=16)),
    "tanh, value shift": (dict(retention="tanh", bias="value_shift"), dict(length=16, d_value=20)),
    "tanh, implicit": (dict(retention="tanh", algorithm="implicit", step_bound=1.0), dict(length=16)),
    "tanh, nesterov": (dict(retention="tanh", algorithm="nesterov", bias="log_cosh"), dict(length=16)),
    "tanh, three slots": (dict(retention="tanh", algorithm="aggmo"), dict(length=16, heads=1)),
    "exponentiated": (dict(retention="exponentiated"), dict(length=21, d_key=24)),
    "at the limit": (dict(retention=LOW, bias="huber"), dict(length=29, d_value=20)),
    "at the limit, bounded": (dict(retention=LOW, step_bound=1.0, algorithm="gd"), dict(length=32)),
    "codes of slots": (dict(architecture="slots", retention="tanh"), dict(length=16, d_key=20)),
    "odd chunks": (dict(retention="exponentiated", chunk_size=5, step_bound=1.0), dict(length=18, d_value=40)),
    "many chunks": (dict(retention=LOW, chunk_size=4, algorithm="gd"), dict(length=70, heads=1)),
    "threshold": (dict(retention="elastic_net"), dict(length=21, d_value=20)),
    "threshold, bounded": (dict(retention="elastic_net", bias="huber", step_bound=1.0), dict(length=24, d_key=20)),
    "threshold, odd chunks": (dict(retention="elastic_net", chunk_size=5, algorithm="gd"), dict(length=18, d_value=40)),
    "threshold, smooth": (dict(retention=SMOOTH, bias="huber"), dict(length=21, d_value=20)),
    "committed, smooth": (dict(retention=SMOOTH | PROXIMAL, step_bound=1.0), dict(length=21, d_key=20)),
    "committed": (dict(retention=PROXIMAL, bias="huber"), dict(length=29, d_key=20, d_value=24)),
    "committed, bounded": (dict(retention=PROXIMAL, step_bound=4.0, algorithm="gd"), dict(length=21, d_value=40)),
    "committed, nesterov": (dict(retention=PROXIMAL, chunk_size=5, algorithm="nesterov"), dict(length=18, d_value=40)),
    "committed, many chunks": (dict(retention=PROXIMAL, chunk_size=4), dict(length=70, heads=1)),
}
"""Fields of a spec (a matrix with momentum, l2 and chunks of 8 otherwise, unbounded) and of a problem."""

cases = pytest.mark.parametrize("name", CASES)


def drawn(name: str, **other: Any) -> Problem:
    fields, sizes = CASES[name]
    basis = {"architecture": "matrix", "algorithm": "momentum", "chunk_size": 8, "read": "anchor", "step_bound": None}
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 2} | sizes | other
    return thresholded(problem(MirasSpec.make(**basis | fields), **arguments))


def thresholded(p: Problem) -> Problem:
    """With thresholds, if any, that some weights do not reach; those that do not accumulate are there from the start."""
    scale = 50 if p.spec.step_bound is None else 5
    gates, extra = {n: scale * x if n == "threshold" else x for n, x in p.gates.items()}, p.state.extra
    if not p.spec.retention.accumulates_threshold:
        extra = {n: x + 0.02 if n.startswith("threshold") else x for n, x in extra.items()}
    return replace(p, gates=gates, state=p.state._replace(extra=extra))


def is_reference(p: Problem) -> None:
    """Everything is that of the token loop in float64, on the same numbers."""
    p = cast(p, torch.float32, "cpu")
    found = errors(results(p, "kernel"), results(wide(p), "reference"), p, torch.float32)
    bad = {n: e for n, e in found.items() if not e <= TOLERANCE["kernel"][torch.float32]}
    assert found and not bad, bad


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    is_reference(drawn(name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("algorithm", ["gd", "momentum"])
@pytest.mark.parametrize("bias", ["l2", "huber", "dot"])
@pytest.mark.parametrize("retention", ["logistic", "tanh", "exponentiated", "elastic_net", PROXIMAL], ids=str)
def test_every_link_under_plain_rules(retention: Any, bias: str, algorithm: str, bound: float | None) -> None:
    parts = dict(architecture="matrix", retention=retention, bias=bias, algorithm=algorithm)
    spec = MirasSpec.make(**parts, chunk_size=4, read="anchor", step_bound=bound)
    is_reference(thresholded(problem(spec, length=11, d_key=16, d_value=20, batch=1, heads=2)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("length", [320, 333])
@pytest.mark.parametrize(
    "name", ["logistic", "tanh, huber", "exponentiated", "logistic, bounded", "at the limit", "threshold", "committed"]
)
def test_tiles_on_device(name: str, length: int, d: int) -> None:
    """Real sizes at bfloat16, whole chunks or not, and the same bits twice."""
    p = drawn(name, d_key=d, d_value=d, length=length)
    gates = {g: 0.2 * x if g == "lr" else x for g, x in p.gates.items()}
    p = replace(p, spec=replace(p.spec, chunk_size=64), gates=gates)
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


def test_limits_are_reached() -> None:
    """Or the cases would not show what a commit does."""
    p = drawn("at the limit")
    _, state = p.slice(0, 24).run("reference")
    assert (state.memory["w"] == p.spec.retention.limit).float().mean() > 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("threshold", "committed")) and "smooth" not in n])
def test_thresholds_are_reached(name: str) -> None:
    """By some weights and not by others, or the cases would show one side only."""
    p = drawn(name)
    _, state = p.slice(0, 2 * p.spec.chunk_size).run("reference")
    weights = anchor_weights(p.spec, AssociativeMemory(p.spec).shapes(p.q.shape[-1], p.v.shape[-1]), state)
    assert 0.05 < (weights["w"] == 0).float().mean() < 0.95


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted, as the cases")
@pytest.mark.parametrize("name", ["threshold", "committed", "committed, smooth"])
def test_a_threshold_of_zero_has_no_kink(name: str) -> None:
    """As after a commit: gradients go through weights of zero too."""
    p = drawn(name)
    is_reference(replace(p, state=p.state.map(torch.zeros_like)))


@pytest.mark.parametrize("name", ["exponentiated", "threshold", "committed"])
def test_split_and_masked(name: str) -> None:
    """A sequence cut inside a chunk, or with tokens left out."""
    p = cast(drawn(name, length=21, batch=2), DTYPE, DEVICE)
    y, state = p.run("kernel")
    head, after = p.slice(0, 11).run("kernel")
    tail, end = replace(p.slice(11, 21), state=after).run("kernel")
    close(torch.cat([head, tail], 1), y)
    close(end.memory["w"], state.memory["w"])
    close(end.slots["w"], state.slots["w"])
    for n, x in state.extra.items():
        close(end.extra[n], x)
    mask = torch.ones(2, 21, dtype=torch.bool, device=DEVICE)
    mask[0, :4] = mask[1, 9] = False
    masked, _ = replace(p, mask=mask).run("kernel")
    alone, _ = p.rows([0]).slice(4, 21).run("kernel")
    close(masked[:1, 4:], alone)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "gates"),
    [("logistic, bounded", ()), ("threshold, bounded", ("gate.threshold",)), ("committed", ("gate.threshold",))],
    ids=["logistic", "threshold", "committed"],
)
def test_compiled_without_a_graph_break(name: str, gates: tuple[str, ...]) -> None:
    compiles(cast(drawn(name, length=16), DTYPE, DEVICE), "q", "k", "v", "state/memory/w", *gates)


def softsign(**members: Any) -> Retention:
    from tests import triton_softsign

    @dataclass(frozen=True)
    class Softsign(Retention):
        link_is_identity: ClassVar[bool] = False
        triton_link: ClassVar[Any] = triton_softsign.link
        triton_link_vjp: ClassVar[Any] = triton_softsign.vjp
        scale: float = 0.7

        @property
        def gates(self) -> Mapping[str, Gate]:
            return {"log_decay": Gate("log_sigmoid", init=0.99)}

        @property
        def triton_constants(self) -> tuple[float, ...]:
            return (self.scale,)

        def link(self, memory: Tensor, context: Context) -> Tensor:
            return self.scale * memory / (1 + memory.abs())

    return type("Softsign", (Softsign,), members)()


def damped(accumulates: bool, **members: Any) -> Retention:
    from tests import triton_softsign

    @dataclass(frozen=True)
    class Damped(Retention):
        link_is_identity: ClassVar[bool] = False
        accumulates_threshold: ClassVar[bool] = accumulates
        triton_link: ClassVar[Any] = triton_softsign.damped
        triton_link_vjp: ClassVar[Any] = triton_softsign.damped_vjp

        @property
        def gates(self) -> Mapping[str, Gate]:
            return {"log_decay": Gate("log_sigmoid", init=0.99), "threshold": Gate("softplus", init=0.05)}

        def link(self, memory: Tensor, context: Context) -> Tensor:
            assert context.threshold is not None
            return torch.where(context.threshold > 0, memory / (1 + context.threshold * memory.abs()), memory)

    commit = {"commit": Damped.link} if accumulates else {}
    return type("Damped", (Damped,), commit | members)()


own = pytest.mark.parametrize(
    "retention", [softsign(), damped(False), damped(True)], ids=["no threshold", "threshold", "committed"]
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the next runs")
@pytest.mark.parametrize("bound", [None, 1.0])
@own
def test_a_retention_of_your_own(retention: Retention, bound: float | None) -> None:
    """Two Triton functions and a retention runs in kernels, with the numbers PyTorch gives."""
    spec = replace(drawn("tanh, huber").spec, retention=retention, step_bound=bound)
    is_reference(thresholded(problem(spec, length=21, d_key=16, d_value=20, batch=1, heads=2)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted, as the cases")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which stands in for the device
def test_a_link_that_has_no_slope_at_zero() -> None:
    """Where a head fills no tile there are zeros, which no gradient is to come from."""
    from tests import triton_softsign

    members = dict(triton_link=triton_softsign.steep, triton_link_vjp=triton_softsign.steep_vjp)
    logarithm = softsign(link=lambda self, a, context: a.log(), **members)
    spec = replace(drawn("tanh").spec, retention=logarithm)
    p = problem(spec, length=16, d_key=20, d_value=24, batch=1, heads=1)
    p = replace(p, gates=p.gates | {"lr": 0.02 * p.gates["lr"]})  # so that accumulators stay above zero
    memory = {n: 5 + w for n, w in p.state.memory.items()}
    is_reference(replace(p, state=p.state._replace(memory=memory, anchor=memory)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted, as the cases")
def test_thresholds_that_add_up_without_a_decay() -> None:
    retention = damped(True, gates={"threshold": Gate("softplus", init=0.05)})
    spec = replace(drawn("tanh").spec, retention=retention)
    is_reference(thresholded(problem(spec, length=21, d_key=16, d_value=16, batch=1, heads=1)))


@pytest.mark.gpu
@own
def test_a_retention_of_your_own_on_device(retention: Retention) -> None:
    spec = replace(drawn("tanh, huber").spec, retention=retention)
    agrees(problem(spec, length=21, d_key=16, d_value=16, batch=1, heads=2), torch.bfloat16, "cuda")


def test_two_retentions_of_one_name_keep_their_functions() -> None:
    """A class that is defined again takes the place of the one before; another module's does not."""
    other = type("Tanh", (type(softsign()),), {"__module__": "elsewhere", "__qualname__": "Tanh"})()
    found = [links.recall(links.key(retention)) for retention in (other, drawn("tanh").spec.retention)]
    assert found[0].link is type(other).triton_link and found[0].constants == (0.7,)
    assert found[1].link is not found[0].link and found[1].constants == ()


def test_constants_may_come_from_numpy() -> None:
    assert links.recall(links.key(softsign(triton_constants=(np.float64(0.25),)))).constants == (0.25,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter never miscompiles")
def test_a_miscompiled_kernel_is_found_out() -> None:
    spec, dims, cpu = replace(drawn("tanh").spec, chunk_size=4), Dims(16, 16), torch.device("cpu")

    def wrong(*arguments: Any) -> Any:
        y, state = KERNEL.run(*arguments)
        return torch.cat([y[..., :-1], y[..., -1:] * 3], -1), state

    assert trust.error(KERNEL, spec, dims, cpu, torch.float32, 2) < 1e-4
    assert trust.error(replace(KERNEL, run=wrong), spec, dims, cpu, torch.float32, 2) > trust.WRONG


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    (dict(retention="l2"), "retention 'l2' has no link"),
    (dict(retention="kl"), "retention 'kl' has no triton_link"),
    (dict(read="after"), "reads every token through a link of its own; read='anchor' takes one a chunk"),
    (dict(anchor_lag=1), "anchor_lag is not 0"),
    (dict(retention={"name": "tanh", "per": "key"}), "a gate per channel"),
    (dict(architecture="mlp"), "is not linear in one matrix"),
    (dict(chunk_size=128), "chunk_size 128 is over 64"),
    (dict(retention=softsign(link=lambda self, a, context: a.tanh())), "but inherits its triton_link"),
    (dict(retention=softsign(triton_link_vjp=None)), "has a triton_link without a triton_link_vjp"),
    (dict(retention=softsign(commit=lambda self, a, context: a)), "changes accumulators at the end of a chunk"),
    (dict(retention=softsign(slope=lambda self, a, context: None)), "has a slope"),
    (dict(retention=softsign(gates={"width": Gate("softplus", init=1.0)})), "has a gate beside decay and threshold"),
    (dict(retention=damped(True, commit=Retention.commit)), "accumulates a threshold that no commit applies"),
    (dict(retention=damped(False, commit=lambda self, a, context: a)), "changes accumulators at the end of a chunk"),
)


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_who_is_refused_and_why(fields: dict[str, Any], reason: str) -> None:
    spec = MirasSpec.make(**{"architecture": "matrix", "retention": "tanh", "read": "anchor", "chunk_size": 8} | fields)
    with pytest.raises(ValueError, match=f"{KERNEL.name}[^:;]*: [^;]*{reason}"):
        AssociativeMemory(spec, "kernel").plan(16, 16, where=(torch.device("cpu"), torch.float32))


def test_it_says_which_kernel_runs() -> None:
    where = (torch.device("cpu"), torch.float32)
    spec = drawn("logistic").spec
    plan = AssociativeMemory(spec, "kernel").plan(16, 16, where=where)
    assert plan.kernel is KERNEL and plan.around == "factored"
    memory = Memory(32, heads=2, architecture="matrix", retention="tanh", chunk_size=8, read="anchor")
    assert memory.explain().plan.refused["kernel"] == f"{KERNEL.name} needs a CUDA device"

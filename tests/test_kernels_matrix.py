"""Triton kernels of matrix memories: what the reference path computes, in Triton's interpreter or (``gpu``) on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

pytest.importorskip("triton")

from miras import AssociativeMemory, MirasSpec
from miras.biases import AttentionalBias, Huber
from miras.kernels import KERNELS, Dims, choose, matrix, residuals, trust
from miras.testing import problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, same_bits_twice

DECAYED = {"name": "l2", "gradient_at": "decayed"}
ROOT = {"name": "l1", "smooth": "loss", "eps": 0.1}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "huber": (dict(bias="huber", step_bound=None), dict(length=21)),
    "huber, bounded": (dict(bias="huber"), dict(length=16)),
    "huber per channel": (dict(bias={"name": "huber", "per": "value"}, algorithm="gd"), dict(length=16)),
    "huber of the norm": (dict(bias="huber_norm", step_bound=None), dict(length=16)),
    "yaad": (dict(bias="yaad", algorithm="gd"), dict(length=16)),
    "value shift": (dict(bias="value_shift"), dict(length=16)),
    "l1": (dict(bias="l1", algorithm="gd"), dict(length=16)),
    "l1 by a root": (dict(bias=ROOT, algorithm="gd", retention="none"), dict(length=16)),
    "l3": (dict(bias="lp", step_bound=None), dict(length=16)),
    "l2.5 by a root": (dict(bias={"name": "lp", "smooth": "loss", "p": 2.5, "eps": 0.1}), dict(length=16)),
    "log cosh": (dict(bias="log_cosh", algorithm="nesterov"), dict(length=16)),
    "log cosh, free": (dict(bias="log_cosh", step_bound=None), dict(length=16)),
    "l2": (dict(bias="l2", algorithm="qhm", read="previous"), dict(length=24, d_key=20, d_value=24)),
    "implicit in chunks": (dict(bias="l2", algorithm="implicit"), dict(length=16)),
    "dgd in chunks": (dict(bias="l2", algorithm="dgd", read="previous"), dict(length=16)),
    "three slots": (dict(bias="huber", algorithm="aggmo", step_bound=None), dict(length=16)),
    "second order": (dict(bias="l2", algorithm={"name": "momentum", "order": 2}), dict(length=16)),
    "stale gradients": (dict(bias="huber", algorithm="fir"), dict(length=16)),
    "codes of slots": (dict(architecture="slots", bias="huber", algorithm="gd"), dict(length=16, d_key=20)),
    "odd chunks": (dict(bias="huber", chunk_size=5), dict(length=18, d_value=40)),
    "many chunks": (dict(bias="huber", chunk_size=4, step_bound=None), dict(length=68, heads=1)),
    "delta rule": (dict(bias="l2", algorithm="gd", retention="none", chunk_size=1), dict(length=70)),
    "gated delta rule": (dict(bias="l2", algorithm="gd", retention=DECAYED, chunk_size=1), dict(length=64)),
    "delta rule with momentum": (dict(bias="l2", chunk_size=1, read="previous"), dict(length=70)),
    "decayed with momentum": (dict(bias="l2", retention=DECAYED, chunk_size=1), dict(length=66, d_value=24)),
    "two heavy balls": (dict(bias="l2", algorithm="aggmo", retention=DECAYED, chunk_size=1), dict(length=66)),
    "longhorn": (dict(bias="l2", algorithm="implicit", retention="none", chunk_size=1), dict(length=70)),
    "dgd": (dict(bias="l2", algorithm="dgd", chunk_size=1), dict(length=70)),
    "linear attention": (dict(bias="dot", algorithm="gd", chunk_size=7), dict(length=70, d_value=32)),
    "linear attention with momentum": (dict(bias="dot", chunk_size=1), dict(length=70)),
}
"""Fields of a spec (a matrix with momentum at chunk size 8 otherwise) and of a problem."""

cases = pytest.mark.parametrize("name", CASES)


def drawn(name: str, **other: Any) -> Problem:
    fields, sizes = CASES[name]
    spec = MirasSpec.make(**{"architecture": "matrix", "algorithm": "momentum", "chunk_size": 8} | fields)
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 2} | sizes | other
    return problem(spec, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    agrees(drawn(name), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cases
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


TILES = ["log cosh", "log cosh, free", "value shift", "delta rule with momentum", "gated delta rule", "delta rule"]
SIZES = [(name, d, n) for name in TILES for d in (64, 80, 128) for n in (320, 333)]
SIZES += [(name, 256, 200) for name in (*TILES[1:2], *TILES[3:], "linear attention")]
SIZES += [(name, 48, 200) for name in ("huber", "gated delta rule")]
SIZES += [(name, 64, 192) for name in ("three slots", "two heavy balls")]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "d", "length"), SIZES)
def test_tiles_on_device(name: str, d: int, length: int) -> None:
    """Real sizes at bfloat16, whole tiles or not, and the same bits twice."""
    p = drawn(name, d_key=d, d_value=d, length=length)
    size = 64 if p.spec.chunk_size > 1 else 1
    # steps small enough for 64 stale gradients, so that rounding does not grow
    gates = {g: 0.2 * x if g == "lr" else x for g, x in p.gates.items()}
    p = replace(p, spec=replace(p.spec, chunk_size=size), gates=gates)
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


@pytest.mark.parametrize("name", ["huber", "delta rule with momentum", "linear attention"])
def test_split_masked_and_packed(name: str) -> None:
    pieces_agree(name)


def pieces_agree(name: str) -> None:
    """A sequence cut inside a chunk, with tokens left out, or packed with another."""
    p = cast(drawn(name, length=21, batch=2), DTYPE, DEVICE)
    y, state = p.run("kernel")
    head, after = p.slice(0, 11).run("kernel")
    tail, end = replace(p.slice(11, 21), state=after).run("kernel")
    close(torch.cat([head, tail], 1), y)
    close(end.memory["w"], state.memory["w"])
    mask = torch.ones(2, 21, dtype=torch.bool, device=DEVICE)
    mask[0, :4] = mask[1, 9] = False
    masked, _ = replace(p, mask=mask).run("kernel")
    alone, _ = p.rows([0]).slice(4, 21).run("kernel")
    close(masked[:1, 4:], alone)
    memory = AssociativeMemory(p.spec, "kernel")
    flat = replace(p, q=p.q.flatten(0, 1)[None], k=p.k.flatten(0, 1)[None], v=p.v.flatten(0, 1)[None])
    gates = {g: x.flatten(0, 1)[None] for g, x in p.gates.items()}
    bounds = torch.tensor([0, 21, 42], device=DEVICE)
    packed, _ = memory(flat.q, flat.k, flat.v, gates, p.state, cu_seqlens=bounds)
    close(packed.unflatten(1, (2, 21))[0], y)


COMPILED = ["huber, bounded", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("delta rule", "gated delta rule"))]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break(name: str) -> None:
    compiles(cast(drawn(name, length=33), DTYPE, DEVICE), "q", "k", "v")


def test_a_bias_of_your_own() -> None:
    """Two Triton functions and a bias runs in kernels, with the numbers PyTorch gives."""
    p = drawn("huber", length=16)
    spec = replace(p.spec, bias=cauchy())
    own = problem(spec, length=16, d_key=16, d_value=16, batch=1, heads=2)
    agrees(own, DTYPE, DEVICE)


def test_two_biases_of_one_name_keep_their_functions() -> None:
    """And with them a compiled model that another process reads from a cache."""
    from tests.triton_cauchy import residual, vjp

    other = type("Huber", (Huber,), {"triton_residual": residual, "triton_vjp": vjp, "__module__": __name__})
    found = [residuals.recall(residuals.key(bias())).residual for bias in (other, Huber)]
    assert found[0] is residual and found[1] is not residual


def cauchy() -> AttentionalBias:
    from tests.triton_cauchy import residual, vjp

    @dataclass(frozen=True)
    class Cauchy(AttentionalBias):
        triton_residual: ClassVar[Any] = residual
        triton_vjp: ClassVar[Any] = vjp
        scale: float = 1.5

        @property
        def triton_constants(self) -> tuple[float, ...]:
            return (self.scale,)

        def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
            return 0.5 * self.scale * (prediction - target).square().log1p().sum(-1)

    return Cauchy()


def test_second_derivatives_are_refused() -> None:
    """Rather than wrong without a word."""
    p, leaves = cast(drawn("huber", length=8), DTYPE, DEVICE).leaves()
    y, _ = p.run("kernel")
    (first,) = torch.autograd.grad(y.float().square().sum(), leaves["k"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.float().sum().backward()


def test_who_is_refused_and_why() -> None:
    spec = MirasSpec.make(architecture="matrix", bias="kl", chunk_size=8)
    with pytest.raises(ValueError, match="bias 'kl' has no triton_residual"):
        AssociativeMemory(spec, "kernel").plan(16, 16, where=(torch.device("cpu"), torch.float32))
    wide = MirasSpec.make(architecture="matrix", bias="huber", chunk_size=64)
    with pytest.raises(ValueError, match="a head of 32 x 32 is under 33 x 33, with tiles of 64 tokens"):
        AssociativeMemory(wide, "kernel").plan(32, 32, where=(torch.device("cpu"), torch.float32))
    deep = MirasSpec.make(architecture="mlp", chunk_size=8)
    with pytest.raises(ValueError, match="not linear in one matrix"):
        AssociativeMemory(deep, "kernel").plan(16, 16, where=(torch.device("cpu"), torch.float32))


def test_never_unasked_without_a_device() -> None:
    memory = AssociativeMemory(drawn("huber").spec)
    plan = memory.plan(16, 16, where=(torch.device("cpu"), torch.float32))
    assert plan.path == "factored" and "needs a CUDA device" in plan.refused["kernel"]
    assert all(kernel.name for kernel in KERNELS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter takes any device for its own")
def test_a_kernel_runs_unasked_once_it_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, where = AssociativeMemory(drawn("huber").spec), (torch.device("cuda"), torch.float32)
    asked = memory.spec, memory.shapes(16, 16), 1, Dims(16, 16), where
    assert choose(*asked) == matrix.CHUNKS
    new = replace(matrix.CHUNKS, proven=False)
    monkeypatch.setattr("miras.kernels.KERNELS", tuple(new if k is matrix.CHUNKS else k for k in KERNELS))
    assert f"{new.name} has not passed its tests" in str(choose(*asked))
    assert choose(*asked, forced=True) == new


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter never miscompiles")
@pytest.mark.parametrize("name", ["log cosh", pytest.param("gated delta rule", marks=pytest.mark.nightly)])
def test_a_miscompiled_kernel_is_found_out(name: str) -> None:
    spec = replace(drawn(name).spec, chunk_size=min(drawn(name).spec.chunk_size, 4))
    memory, dims = AssociativeMemory(spec, "kernel"), Dims(16, 16)
    kernel = memory.plan(*dims, where=(torch.device("cpu"), torch.float32)).kernel
    assert kernel is not None

    def wrong(*arguments: Any) -> Any:
        y, state = kernel.run(*arguments)
        return torch.cat([y[..., :-1], y[..., -1:] * 3], -1), state

    cpu = torch.device("cpu")
    assert trust.error(kernel, spec, dims, cpu, torch.float32, 2) < 1e-4
    assert trust.error(replace(kernel, run=wrong), spec, dims, cpu, torch.float32, 2) > trust.WRONG


def test_a_first_use_inside_a_checkpoint() -> None:
    """The self-check of a kernel saves tensors of its own, once, which a checkpoint must not count."""
    p, leaves = cast(drawn("huber", length=8), DTYPE, DEVICE).leaves()
    kernel = next(k for k in KERNELS if k.name == "matrix chunks")
    calls: list[float] = []

    def go(q: Tensor) -> Tensor:
        if not calls:
            small = replace(p.spec, chunk_size=4)
            calls.append(trust.error(kernel, small, Dims(16, 16), q.device, q.dtype, 2))
        return replace(p, q=q).run("kernel")[0]

    y = torch.utils.checkpoint.checkpoint(go, p.q, use_reentrant=False)
    assert isinstance(y, Tensor)
    y.float().sum().backward()
    assert leaves["q"].grad is not None and len(calls) == 1

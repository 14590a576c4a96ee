"""Kernels of the perceptron with heads of any width, against PyTorch in float64: answers, states and the gradients of everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.architectures import MLP
from miras.architectures._calculus import ACTIVATIONS
from miras.biases import L2, Huber, Lp, Yaad
from miras.kernels import KERNELS, Dims, choose, interpreted, mlp_padded, trust
from miras.retentions import Lq
from miras.testing.problems import problem
from miras.testing.tolerances import TOLERANCE
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles

TITANS = MirasSpec.make(
    architecture=MLP(expansion=1), bias="l2", retention="l2", algorithm="momentum", chunk_size=16, step_bound=None
)
BOUNDED = replace(TITANS, architecture=MLP(expansion=2), step_bound=1.0)
LQ = Lq(norm="mean", link_at="chunk")
PLAIN = MLP(expansion=4, norm=False)  # a norm divides by how little averages differ
MEMORA = replace(TITANS, architecture=PLAIN, retention="kl", algorithm="gd", read="anchor", step_bound=4.0)
SPECS = {
    "titans": (TITANS, 12, 12),
    "bounded": (BOUNDED, 24, 24),
    "huber": (replace(TITANS, architecture=MLP(), bias=Huber(), algorithm="gd", step_bound=1.0), 48, 48),
    "huber per channel": (replace(TITANS, architecture=MLP(activation="silu"), bias=Huber(per="value")), 12, 12),
    "no norm": (replace(TITANS, architecture=MLP(norm=False, activation="tanh"), algorithm="gd"), 24, 24),
    "keys alone": (replace(BOUNDED, architecture=MLP(residual=False, activation="relu2"), bias="huber_norm"), 12, 16),
    "values alone": (replace(TITANS, architecture=MLP(norm=False, residual=False, expansion=2)), 16, 24),
    "yaad": (replace(BOUNDED, bias=Yaad()), 12, 12),
    "moneta": (replace(BOUNDED, bias=Lp(), retention=LQ, algorithm="gd"), 12, 12),
    "memora": (MEMORA, 24, 24),
    "memora, keys alone": (replace(MEMORA, architecture=replace(PLAIN, residual=False)), 24, 16),
    "biases": (replace(BOUNDED, architecture=MLP(expansion=2, bias=True)), 12, 12),
    "ttt": (zoo.spec("ttt_mlp"), 12, 12),
}
"""Memory and widths of a head."""


class Own(L2):
    """A bias with Triton functions of its own, which nothing calls."""

    triton_residual = triton_vjp = print


@pytest.mark.parametrize("name", SPECS)
def test_agrees(name: str) -> None:
    spec, key, value = SPECS[name]
    agrees(problem(spec, length=32, d_key=key, d_value=value, batch=1, heads=1), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECS)
def test_agrees_in_bfloat16(name: str) -> None:
    """At a rate at which the memory does not amplify rounding."""
    spec, key, value = SPECS[name]
    spec = replace(spec, architecture=replace(spec.architecture, expansion=4), chunk_size=64)
    p = problem(spec, length=256, d_key=48 if key % 16 else key, d_value=48 if value % 16 else value)
    agrees(replace(p, gates=p.gates | {"lr": 1e-3 * p.gates["lr"]}), torch.bfloat16, "cuda")


def test_masked_and_packed() -> None:
    """Tokens left out, and documents one behind the other, none of them whole chunks."""
    p = cast(problem(replace(TITANS, chunk_size=16), length=37, d_key=12, d_value=12, heads=1), DTYPE, DEVICE)
    y, _ = p.run("kernel")
    mask = torch.ones(2, 37, dtype=torch.bool, device=DEVICE)
    mask[0, :4] = False
    masked, _ = replace(p, mask=mask).run("kernel")
    alone, _ = p.rows([0]).slice(4, 37).run("kernel")
    close(masked[:1, 4:], alone)
    flat, bounds = p.map(lambda x: x.flatten(0, 1)[None]), torch.tensor([0, 37, 74], device=DEVICE)
    memory = AssociativeMemory(p.spec, "kernel")
    documents, _ = memory(flat.q, flat.k, flat.v, flat.gates, p.state, cu_seqlens=bounds)
    close(documents.unflatten(1, (2, 37)), y)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break() -> None:
    p = problem(replace(TITANS, algorithm="gd"), length=16, d_key=12, d_value=12, batch=1, heads=1)
    compiles(cast(p, DTYPE, DEVICE), "k")


def test_is_tried_at_its_own_widths() -> None:
    error = trust.error(mlp_padded.KERNEL, BOUNDED, Dims(12, 12), torch.device(DEVICE), torch.float32, 1)
    assert error < TOLERANCE["kernel"][torch.float32]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_keep_zeros(name: str) -> None:
    assert ACTIVATIONS[name].value(torch.zeros(1)) == 0  # type: ignore[index]


@pytest.mark.parametrize("name", ["titans_lmm", "yaad", "moneta", "memora", "ttt_mlp"])
def test_computes_published_memories(name: str) -> None:
    spec = zoo.spec(name, read="anchor") if name == "memora" else zoo.spec(name)
    where = torch.device("cuda"), torch.float32 if interpreted() else torch.bfloat16
    width = 24 if interpreted() else 48
    arguments = spec, AssociativeMemory(spec).shapes(width, width), 1, Dims(width, width), where
    assert choose(*arguments, forced=interpreted()) == mlp_padded.KERNEL


@pytest.mark.parametrize(
    ("spec", "width", "reason"),
    [
        (TITANS, 64, "needs no padding"),
        (TITANS, 96, "over 64 x 64"),
        (zoo.spec("memora", read="anchor", architecture={"expansion": 1}), 40, "weight to padding"),
        (zoo.spec("yaad", bias={"norm": "rms"}), 48, "a norm other than l2"),
        (replace(TITANS, bias=Own()), 48, "triton_residual"),
        (zoo.spec("ttt_mlp", architecture={"affine": True}), 48, "no kernel that takes padded heads"),
        (replace(TITANS, architecture="gated_mlp"), 48, "no kernel that takes padded heads"),
    ],
)
def test_says_why_not(spec: MirasSpec, width: int, reason: str) -> None:
    shapes = AssociativeMemory(spec).shapes(width, width)
    assert reason in str(mlp_padded.KERNEL.supports(spec, shapes, 1))
    assert [k for k in KERNELS if k.supports(spec, shapes, 1) is None] != [mlp_padded.KERNEL]

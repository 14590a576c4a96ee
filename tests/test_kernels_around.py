"""Kernels around a memory against the PyTorch code in float64: heads, tails, norm and gate, and the gradients of everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import triton
import triton.language as tl

from miras import Memory, MirasSpec, convolution
from miras.kernels import Dims, around, matrix, trust
from miras.kernels._around import heads as around_heads
from miras.kernels._around import ops
from miras.surroundings import Surroundings
from miras.testing import TOLERANCE, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = TOLERANCE["kernel"][torch.float32]
SILU_UNIT = True, True
FLOATS = torch.float32, torch.float32, torch.float32


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE, dtype=torch.float64) for shape in shapes]


def run(function: Callable[..., Any], leaves: Sequence[Tensor], *how: Any) -> list[Tensor]:
    """Outputs, and gradients of a random function of them."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves, *how)
    outs = [out] if isinstance(out, Tensor) else list(out)
    g = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(y.shape, device=DEVICE, generator=g).bfloat16().to(y.dtype) for y in outs]
    return [y.detach() for y in outs] + list(torch.autograd.grad(outs, leaves, weights))


def errors(kernel: Any, slow: Any, leaves: Sequence[Tensor], dtype: torch.dtype, *how: Any) -> list[float]:
    """Of operands in that dtype; both sides see the same numbers."""
    narrow = [x.to(dtype) for x in leaves]
    got, wanted = run(kernel, narrow, *how), run(slow, [x.double() for x in narrow], *how)
    return [relative(a.double(), b) for a, b in zip(got, wanted, strict=True)]


def sizes(batch: int, length: int, heads: int, width: int, taps: int) -> list[tuple[int, ...]]:
    """Of line, taps and tail."""
    return [(batch, length, heads * width), (heads * width, taps), (batch, taps - 1, heads * width)]


@pytest.mark.parametrize(
    ("counts", "width", "taps", "length", "silu", "units"),
    [
        ([2, 1, 1], 16, 4, 150, True, True),  # three stretches, the last of them short
        (
            [3, 3, 3],
            48,
            4,
            66,
            True,
            True,
        ),  # fewer heads than a program takes; the last tokens of a stretch in the next
        ([1, 2, 2], 20, 5, 9, True, False),
        ([2, 4, 4], 64, 2, 33, False, True),
        ([2, 0, 0], 16, 3, 20, False, False),
        ([0, 1, 1], 130, 8, 70, True, True),
        ([1, 1, 1], 16, 4, 2, True, True),  # shorter than the tail
        ([1, 1, 1], 16, 4, 1, True, True),
    ],
)
def test_heads(counts: list[int], width: int, taps: int, length: int, silu: bool, units: bool) -> None:
    leaves = drawn(*sizes(2, length, sum(counts), width, taps))
    found = errors(ops.heads, convolution.heads, leaves, torch.float32, counts, silu, units, True)
    assert max(found) <= EXACT, found


def test_short_vectors() -> None:
    """Those under the bound are divided by it; a zero has a gradient."""
    leaves = drawn(*sizes(1, 20, 3, 16, 4))
    leaves[0] *= 10.0 ** torch.arange(-8, 2, 0.5, device=DEVICE)[:, None]
    leaves[0][:, :5], leaves[2] = 0, 0 * leaves[2]
    found = errors(ops.heads, convolution.heads, leaves, torch.float32, [1, 1, 1], False, True, True)
    assert max(found) <= EXACT, found


@pytest.mark.parametrize("width", [16, 48, 64])
def test_gated(width: int) -> None:
    leaves = drawn((2, 70, 3, width), (width,), (2, 70, 3 * width))
    found = errors(ops.gated, around.slow_gated, leaves, torch.float32, 1e-6)
    assert max(found) <= EXACT, found


def test_any_strides() -> None:
    """Parts of wider tensors, heads before tokens, and gradients that are expanded."""
    line, taps, tail = drawn((2, 20, 60), (48, 4), (2, 3, 60))
    line, taps, tail = (x.float() for x in (line[..., 7:55], taps, tail[..., 3:51]))
    how = [1, 1, 1], *SILU_UNIT, True
    for a, b in zip(ops.heads(line, taps, tail, *how), convolution.heads(line, taps, tail, *how), strict=True):
        assert relative(a, b) <= EXACT
    y, gain, gate = (x.float() for x in drawn((2, 3, 20, 16), (16,), (2, 20, 50)))
    y, gate = y.transpose(1, 2).requires_grad_(), gate[..., 2:].requires_grad_()
    pairs = (f(y, gain, gate, 1e-6) for f in (ops.gated, around.slow_gated))
    mine, slow = ([out, *torch.autograd.grad(out.sum(), (y, gate))] for out in pairs)
    assert all(relative(a, b) <= EXACT for a, b in zip(mine, slow, strict=True))


def test_a_sequence_in_parts() -> None:
    """Also in parts shorter than the tail."""
    line, taps, tail = (x.float() for x in drawn(*sizes(2, 40, 3, 16, 4)))
    whole = ops.heads(line, taps, tail, [1, 1, 1], *SILU_UNIT, True)
    parts, at = [], tail
    for piece in line.split([1, 2, 20, 17], 1):
        *three, at = ops.heads(piece, taps, at, [1, 1, 1], *SILU_UNIT, True)
        parts.append(three)
    for a, b in zip(whole[:3], (torch.cat(x, 1) for x in zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(at, whole[3])


def squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.square().sum() for x in tensors]).sum()


def test_second_derivatives() -> None:
    def curvature(function: Any, leaves: list[Tensor], *how: Any) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = function(*leaves, *how)
        first = torch.autograd.grad(squares([out] if isinstance(out, Tensor) else out), leaves, create_graph=True)
        return list(torch.autograd.grad(squares(first), leaves))

    cases: list[tuple[Any, Any, list[Tensor], tuple[Any, ...]]] = [
        (ops.heads, convolution.heads, drawn(*sizes(1, 6, 3, 16, 4)), ([1, 1, 1], True, False, True)),
        (ops.gated, around.slow_gated, drawn((1, 5, 2, 16), (16,), (1, 5, 32)), (1e-6,)),
    ]
    for kernel, slow, leaves, how in cases:
        got, wanted = curvature(kernel, [x.float() for x in leaves], *how), curvature(slow, leaves, *how)
        assert all(relative(a.double(), b) <= 10 * EXACT for a, b in zip(got, wanted, strict=True))


@triton.jit
def wrong(z, SILU: tl.constexpr):
    return z, z


def test_a_wrong_kernel_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        return around.heads_error(16, 4, (*SILU_UNIT, True), torch.device(DEVICE), FLOATS, 32)

    assert error() < EXACT and around.gated_error(16, torch.device(DEVICE), FLOATS, 32) < EXACT
    if DEVICE == "cpu":  # a device keeps what it compiled
        monkeypatch.setattr(around_heads, "activated", wrong)
        assert error() > trust.WRONG


def test_trials_within_inference() -> None:
    """The first call may be one of generation."""
    device, dtype = torch.device(DEVICE), torch.float32 if DEVICE == "cpu" else torch.bfloat16
    spec = MirasSpec.make(architecture="matrix", bias="huber", chunk_size=4)
    with torch.inference_mode():
        assert around.gated_error(16, device, FLOATS, 20) < EXACT
        assert trust.error(matrix.CHUNKS, spec, Dims(16, 16), device, dtype, 2) < trust.WRONG


# --- In a layer -----------------------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lookahead": {"lookahead": True},
    "pairs": {"pairs": 2},
    "identity, no length": {"activation": "identity", "qk_norm": False, "conv": 3},
}


def layer(**around: Any) -> Memory:
    torch.manual_seed(0)
    return Memory(32, heads=2, architecture="matrix", chunk_size=8, around=Surroundings(**around)).to(DEVICE)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that ran, where those on a device would."""
    seen: list[str] = []
    monkeypatch.setattr(around, "on_device", lambda x: True)
    monkeypatch.setattr(trust, "triable", lambda device: False)  # trials would be seen
    for name in ("heads", "gated"):
        operator = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *x, o=operator, n=name: (seen.append(n), o(*x))[1])
    return seen


def gradients(memory: Memory, x: Tensor) -> list[Tensor]:
    """Of both halves of a sequence, one after the other."""
    x = x.detach().requires_grad_()
    first, state = memory(x[:, :9])
    second, _ = memory(x[:, 9:], state)
    y = torch.cat([first, second], 1)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *(p for p in memory.parameters() if p.requires_grad)])]


@pytest.mark.parametrize("name", LAYERS)
def test_layer(used: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    memory, x = layer(**LAYERS[name]), torch.randn(2, 20, 32, device=DEVICE)
    got = gradients(memory, x)
    assert used == ["heads", "gated", "heads", "gated"]
    monkeypatch.setattr(around, "on_device", lambda x: False)
    wanted = gradients(memory.double(), x.double())
    assert all(relative(a.double(), b) <= 10 * EXACT for a, b in zip(got, wanted, strict=True))


def test_queries_and_writes(used: list[str]) -> None:
    memory, x = layer(lookahead=True), torch.randn(2, 20, 32, device=DEVICE)
    state = memory.initial_state(2)
    whole, tail = memory.project(x, state)
    q, first = memory.queries(x, state)
    k, v, _, second = memory.writes(x, state)
    assert used == ["heads"] * 3 and tail is not None and first is not None and second is not None
    torch.testing.assert_close([q, k, v], list(whole[:3]))
    torch.testing.assert_close(torch.cat([first, second], -1), tail)


def test_pytorch_where_no_kernel_can(used: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    memory, x = layer(output_gate=False), torch.randn(2, 6, 32, device=DEVICE)
    memory(x, mask=torch.ones(2, 6, dtype=torch.bool, device=DEVICE))
    layer()(x, mask=torch.ones(2, 6, dtype=torch.bool, device=DEVICE))
    assert used == ["gated"]
    layer(conv=0, output_norm=False)(x)
    layer(conv=1, output_norm=False)(x)
    layer(conv=9, output_norm=False)(x)
    memory = layer()
    torch.func.grad(lambda x: memory(x)[0].square().sum())(x)
    layer().double()(x.double())
    assert used == ["gated"]
    monkeypatch.setattr(around, "on_device", lambda x: x.is_cuda)
    layer().cpu()(x.cpu())
    assert used == ["gated"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "on_device", lambda x: True)
    memory, x = layer(), torch.randn(2, 16, 32, device=DEVICE)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: memory(x)[0], fullgraph=True, backend="aot_eager")

    def run(call: Any) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = call(leaf)
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *(p for p in memory.parameters() if p.requires_grad)])]

    for a, b in zip(run(compiled), run(lambda x: memory(x)[0]), strict=True):
        assert relative(a, b) <= EXACT


# --- On a device ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "width", "taps"),
    [
        (4, 4096, 16, 64, 4),
        (3, 4095, 5, 64, 4),
        (2, 1001, 4, 128, 5),
        (2, 513, 3, 48, 4),
        (1, 300, 16, 16, 2),
        (1, 77, 2, 256, 8),
    ],
)
def test_heads_on_a_device(batch: int, length: int, heads: int, width: int, taps: int, dtype: torch.dtype) -> None:
    leaves = drawn(*sizes(batch, length, 3 * heads, width, taps))
    how = [heads] * 3, *SILU_UNIT, True
    found = errors(ops.heads, convolution.heads, leaves, dtype, *how)
    assert max(found) <= TOLERANCE["kernel"][dtype], found
    twice = [run(ops.heads, [x.to(dtype) for x in leaves], *how) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "width"),
    [(4, 4096, 16, 64), (3, 4095, 5, 64), (2, 1001, 4, 128), (2, 513, 3, 48), (1, 77, 2, 256)],
)
def test_gated_on_a_device(batch: int, length: int, heads: int, width: int, dtype: torch.dtype) -> None:
    leaves = drawn((batch, length, heads, width), (width,), (batch, length, heads * width))
    leaves[0] = leaves[0].transpose(1, 2).contiguous().transpose(1, 2)
    found = errors(ops.gated, around.slow_gated, leaves, dtype, 1e-6)
    assert max(found) <= TOLERANCE["kernel"][dtype], found
    twice = [run(ops.gated, [x.to(dtype) for x in leaves], 1e-6) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


def big(**fields: Any) -> Memory:
    torch.manual_seed(0)
    spec: dict[str, Any] = {"architecture": "mlp", "bias": "l2", "algorithm": "momentum", "chunk_size": 64}
    return Memory(256, heads=4, step_bound=None, **(spec | fields)).to(DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("architecture", ["mlp", "matrix"])
def test_layer_on_a_device(monkeypatch: pytest.MonkeyPatch, architecture: str, automatic: bool) -> None:
    """No further from float64 than twice the layer with PyTorch around its memory, in bfloat16 by autocast or by weights."""
    memory, x = big(architecture=architecture), torch.randn(2, 512, 256, device=DEVICE).bfloat16().float()
    for p in memory.parameters():
        p.data = p.data.bfloat16().float()
    for p in memory.gates.parameters():  # rates and decays as they begin: rounding does not grow along the tokens
        nn.init.zeros_(p)

    def go(dtype: torch.dtype, kernels: bool) -> list[Tensor]:
        monkeypatch.setattr(around, "on_device", lambda x: kernels)
        here = memory.to(torch.float32 if automatic and dtype == torch.bfloat16 else dtype)
        leaf = x.to(here.qkv.weight.dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=automatic and dtype == torch.bfloat16):
            y = here(leaf)[0]
        wanted = [leaf, *(p for p in here.parameters() if p.requires_grad)]
        return [y.detach(), *torch.autograd.grad(y.double().square().sum(), wanted)]

    mine, slow, wanted = go(torch.bfloat16, True), go(torch.bfloat16, False), go(torch.float64, False)
    for a, b, c in zip(mine, slow, wanted, strict=True):
        assert relative(a.double(), c) <= max(TOLERANCE["kernel"][torch.bfloat16], 2 * relative(b.double(), c))


@pytest.mark.gpu
def test_replayed_from_a_graph() -> None:
    """One token recorded once, and replayed on another."""
    memory, x = big().bfloat16(), torch.randn(2, 256, device=DEVICE).bfloat16()
    with torch.no_grad():
        _, state = memory(torch.randn(2, 64, 256, device=DEVICE).bfloat16())
        memory.step(x, state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, after = memory.step(x, state)
        x.mul_(-0.5)
        graph.replay()
        wanted, end = memory.step(x, state)
    assert torch.equal(y, wanted) and torch.equal(after.extra["conv"], end.extra["conv"])

"""Shorter ways through the matrix kernels, off until a device has measured them: the numbers of the reference path too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from benchmarks import variants_matrix
from miras.kernels import _coefficients, _compact, _launches, normed
from miras.testing import TOLERANCE, relative
from tests import test_kernels_matrix as matrices
from tests import test_kernels_normed as norms
from tests.kernels import DEVICE, DTYPE, agrees, cast, compiles, results

MATRICES = (
    "l1 by a root",
    "delta rule",
    "gated delta rule",
    "linear attention",
    "codes of slots",
)
MOMENTUM = ("delta rule with momentum", "decayed with momentum")
NORMED = ("ttt_linear", "bounded", "no residual", "odd chunks", "huber per channel")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compact, "FORMED", True)
    monkeypatch.setattr(_compact, "LEAN", True)
    monkeypatch.setitem(_launches.INVERSE, "SMALL", 16)
    for name in ("OWN_NORM", "READER_ROWS", "KEYS_IN_KERNEL"):
        monkeypatch.setattr(normed, name, True)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", MATRICES + MOMENTUM)
def test_matrices(name: str) -> None:
    agrees(matrices.drawn(name), DTYPE, DEVICE)


def test_systems_joined_level_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_launches.INVERSE, "SMALL", 0)
    agrees(matrices.drawn("delta rule"), DTYPE, DEVICE)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NORMED)
def test_behind_a_norm(name: str) -> None:
    agrees(norms.drawn(name), DTYPE, DEVICE)


@pytest.mark.gpu
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("name", "d", "length"), [s for s in matrices.SIZES if s[0] in MATRICES + MOMENTUM])
def test_tiles_on_device(name: str, d: int, length: int) -> None:
    matrices.test_tiles_on_device(name, d, length)


@pytest.mark.gpu
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("length", [320, 777])
@pytest.mark.parametrize("name", ["ttt_linear", "as the paper", "bounded", "decayed mini-batches"])
def test_norms_on_device(name: str, length: int, chunk: int) -> None:
    norms.test_tiles_on_device(name, length, chunk)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["gated delta rule", "delta rule"])
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break(name: str) -> None:
    compiles(cast(matrices.drawn(name, length=33), DTYPE, DEVICE), "q", "k", "v")


FLAGS = [(False, False, False, False), (True, False, True, False), (False, True, True, False)]
FLAGS += [(False, True, True, True), (True, True, False, False)]


@pytest.mark.parametrize(("previous", "solve", "decay", "decayed"), FLAGS)
def test_coefficients_with_momentum(
    previous: bool, solve: bool, decay: bool, decayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From sums, and from every stretch by itself: all of a tile's coefficients and the gradients of both gates."""
    g = torch.Generator().manual_seed(0)
    gates = [F.logsigmoid(torch.randn(1, 2, 40, generator=g) + 1).to(DEVICE).requires_grad_() for _ in range(2)]
    found = []
    for on in (False, True):
        monkeypatch.setattr(_compact, "LEAN", on)
        logs = gates[0] if decay else None, gates[1]
        out = _coefficients.coefficients(gates[1], *logs, 16, 1, 0.0, previous, solve, decayed, False, DTYPE)
        # of tokens that do not exist nothing is read, and no gradient comes
        there = torch.arange(16, device=DEVICE) < torch.tensor([16, 16, 8], device=DEVICE)[:, None]
        square = (there[:, None, :] & there[:, :, None]).to(DTYPE)
        kept = [x * square if x.shape[-2:] == (16, 16) else x for x in out if x.numel()]
        kept = [x * there[:, None, :] if x.shape[-1] == 16 and x.shape[-2] == 2 else x for x in kept]
        g.manual_seed(1)
        total = torch.stack([(x * torch.randn(x.shape, generator=g).to(x)).sum() for x in kept]).sum()
        grads = torch.autograd.grad(total, [x for x in logs if x is not None])
        found.append([*(x.detach() for x in kept), *grads])
    for a, b in zip(*found, strict=True):
        assert relative(a.float(), b.float()) <= TOLERANCE["kernel"][DTYPE]


def test_variants_of_what_a_call_launches() -> None:
    """They are entered and left, one inside another, and only kernels that are launched have any."""
    p = cast(matrices.drawn("gated delta rule"), DTYPE, DEVICE)
    found = variants_matrix.found(lambda: results(p, "kernel"))
    before = _launches.config
    with variants_matrix.both(found["every 8"], found["scan 32 4 3"], found["keys 64 4 1"])():
        size = _launches.Tiles(1, 1, 64, 64, 1, 1, 64, 64, torch.bfloat16)
        assert _launches.EVERY == 8 and _launches.config(size, False, "scan") == (32, 4, 3)
        assert _launches.config(size, False, "keys") == (64, 4, 1)
    assert _launches.EVERY == 16 and _launches.config is before
    assert "inverse blocks" in found and not [n for n in found if n.startswith(("ttt", "carry", "lean"))]

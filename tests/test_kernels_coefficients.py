"""What a tile's gates become in Triton kernels, and its triangular system: interpreted, or on a device."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from miras.kernels._coefficients.ops import coefficients, compact
from miras.kernels._matrix import launches
from miras.testing import TOLERANCE, relative
from tests.kernels import DEVICE, DTYPE

FLAGS = [(False, False, False, False), (True, False, True, False), (False, True, True, False)]
FLAGS += [(False, True, True, True), (True, True, False, False), (True, True, True, False)]
KINDS = [(0, torch.bfloat16), (1, DTYPE), (2, torch.bfloat16), (3, torch.bfloat16)]
# without a slot a decay is the only gate
CASES = [(*kind, *flags) for kind, flags in itertools.product(KINDS, FLAGS) if kind[0] or flags[2]]


@pytest.mark.parametrize(("kind", "dtype", "previous", "solve", "decay", "decayed"), CASES)
def test_from_sums(
    kind: int,
    dtype: torch.dtype,
    previous: bool,
    solve: bool,
    decay: bool,
    decayed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stretches as differences of sums, against stretches summed by themselves: all coefficients, the gradients of both gates."""
    g = torch.Generator().manual_seed(0)
    gates = [F.logsigmoid(torch.randn(1, 2, 40, generator=g) + 1).to(DEVICE).requires_grad_() for _ in range(2)]
    logs = gates[0] if decay else None, gates[1] if kind else None

    def found(dtype: torch.dtype) -> list[Tensor]:
        out = coefficients(gates[1], *logs, 16, kind, 0.7, previous, solve, decayed, False, dtype)
        # of tokens that do not exist nothing is read, and no gradient comes
        there = torch.arange(16, device=DEVICE) < torch.tensor([16, 16, 8], device=DEVICE)[:, None]
        square = (there[:, None, :] & there[:, :, None]).float()
        kept = [x * square if x.shape[-2:] == (16, 16) else x for x in out if x.numel()]
        kept = [x * there[:, None, :] if x.shape[-1] == 16 and x.shape[-2] < 16 else x for x in kept]
        g.manual_seed(1)
        total = torch.stack([(x.float() * torch.randn(x.shape, generator=g).to(DEVICE)).sum() for x in kept]).sum()
        return [*kept, *torch.autograd.grad(total, [x for x in logs if x is not None])]

    got = found(dtype)
    monkeypatch.setattr(compact, "narrow", lambda dtype: False)
    for a, b in zip(got, found(torch.float32), strict=True):
        assert relative(a.float(), b) <= TOLERANCE["kernel"][dtype]


@pytest.mark.parametrize(("kind", "size"), [(1, 8), (1, 16), (2, 16), (3, 8)])
def test_nothing_leans_towards_zero(kind: int, size: int) -> None:
    """Tensor cores cut off what TF32 has no digits for: of numbers that are rounded before, some become larger and some smaller."""
    g = torch.Generator().manual_seed(0)
    gates = [F.logsigmoid(torch.randn(1, 2, 256, generator=g) + 1).to(DEVICE) for _ in range(2)]
    got, wanted = (
        coefficients(gates[1], *gates, size, kind, 0.75, False, False, False, False, dtype)
        for dtype in (torch.float16, torch.float32)
    )
    for a, b in zip(got[1:3], wanted[1:3], strict=True):  # pairs, and what every token writes at the end
        assert (a.double().sum() / b.double().sum() - 1).abs() <= 1e-4


@pytest.mark.parametrize("size", [5, 16, 32, 64])
def test_systems(size: int) -> None:
    """Blocks of 16 tokens and what joins them, of whole tiles and of one that is not full."""
    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(DEVICE)

    m, rest = 3, size // 2
    tokens = 2 * size + rest
    k, lr, slope, pairs = drawn(1, 2, tokens, 16), drawn(1, 2, tokens), drawn(1, 2, tokens), drawn(1, 2, m, size, size)
    k = F.normalize(k, dim=-1).to(DTYPE)
    rows = drawn(1, 2, m, 1, size)
    call = launches.Call.of(k, k, k, lr, None, None, slope, rows, pairs, rows, rows, rows, pairs.to(DTYPE))
    padded = [F.pad(x, (0, 0, 0, size - rest)) for x in (k.float(), lr[..., None], slope[..., None])]
    keys, rate, steep = (x.unflatten(2, (m, size)) for x in padded)
    system = torch.eye(size, device=DEVICE) + (steep * (keys @ keys.mT) * pairs * rate.mT).tril(-1)
    there = (torch.arange(m * size, device=DEVICE) < tokens).view(m, size)
    wanted = torch.linalg.inv(system.double()) * (there[:, None, :] & there[:, :, None])
    solved = launches.solve(call)
    exists = there[:, None, :].expand_as(solved) & there[:, :, None]
    assert relative(torch.where(exists, solved, 0.0).double(), wanted) <= TOLERANCE["kernel"][DTYPE]

"""Bounded steps of a matrix whose value channels are spread over programs, which meet to add up the norms of errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from miras import MirasSpec
from miras.kernels._matrix import bounded
from miras.testing import problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, results, same_bits_twice

SPECS = {
    "huber": MirasSpec.make(architecture="matrix", bias="huber", algorithm="momentum", chunk_size=16),
    "l3": MirasSpec.make(architecture="matrix", bias="lp", algorithm="gd", retention="l2", chunk_size=16),
    "log cosh": MirasSpec.make(architecture="matrix", bias="log_cosh", algorithm="nesterov", chunk_size=16),
    "small steps": MirasSpec.make(architecture="matrix", bias="huber", algorithm="gd", chunk_size=8, step_bound=0.5),
    "per channel": MirasSpec.make(
        architecture="matrix", bias={"name": "huber", "per": "value"}, algorithm="gd", chunk_size=16
    ),
}


def drawn(name: str, **sizes: Any) -> Problem:
    arguments: dict[str, Any] = {"length": 37, "d_key": 16, "d_value": 80, "batch": 1, "heads": 2} | sizes
    return problem(SPECS[name], **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@pytest.mark.parametrize("name", SPECS)
def test_interpreted(name: str) -> None:
    p = drawn(name)
    assert meetings(p), "value channels are in one program"
    agrees(p, torch.float32, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
def test_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of squares in another order are all that differs from a program with all channels."""
    p = cast(drawn("log cosh", d_value=48), DTYPE, DEVICE)
    met = results(p, "kernel")
    monkeypatch.setattr(bounded, "sums", lambda call, found: call.lr.new_empty(1, 2, 0))
    alone = results(p, "kernel")
    for a, b in zip(met, alone, strict=True):
        for n, x in a.items():
            y = b[n]
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("d", "length"), [(128, 320), (128, 333), (96, 200)])
def test_on_device(name: str, d: int, length: int) -> None:
    """Real sizes at bfloat16, whole tiles or not, and the same bits twice."""
    p = drawn(name, d_key=d, d_value=d, length=length, heads=4)
    p = replace(p, spec=replace(p.spec, chunk_size=64), gates=p.gates | {"lr": 0.2 * p.gates["lr"]})
    assert meetings(p)
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


def meetings(p: Problem) -> list[torch.Size]:
    """Shapes of the sums that a call adds up among programs."""
    found: list[torch.Size] = []
    sums = bounded.sums

    def seen(*arguments: object) -> torch.Tensor:
        out = sums(*arguments)  # type: ignore[arg-type]
        found.append(out.shape)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "sums", seen)
        results(cast(p, DTYPE, DEVICE), "kernel")
    return [shape for shape in found if shape.numel()]

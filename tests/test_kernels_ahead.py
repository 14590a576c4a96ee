"""Kernels that are compiled before a call runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from miras.kernels import ahead, table
from miras.kernels._mlp import launch as mlp_launch


class Kernel:
    """Tells what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def warmup(self, *arguments: Any, grid: tuple[int], **options: Any) -> None:
        self.asked.append(("compiled", arguments, grid, options))

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *arguments, **options: self.asked.append(("started", arguments, grid, options))


class Twice(torch.autograd.Function):
    """Starts a kernel forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: Kernel) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.kernel = kernel
        ahead.start(kernel, 1, ["forward"], {})
        return 2 * x

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ahead.start(ctx.kernel, 2, ["backward"], {"BLOCK": 16})
        return 2 * d, None


def passes(kernel: Kernel) -> torch.Tensor:
    x = torch.ones(1, requires_grad=True)
    return torch.autograd.grad(Twice.apply(x, kernel), x)[0]  # pyright: ignore[reportArgumentType]


def test_compiled_first_then_started() -> None:
    kernel = Kernel()
    assert ahead.rehearsed(lambda: passes(kernel), torch.device("cuda")) == 2
    wanted = [("forward",), (1,), {}], [("backward",), (2,), {"BLOCK": 16}]
    assert kernel.asked == [(how, *rest) for how in ("compiled", "started") for rest in wanted]


def test_where_nothing_is_compiled_it_runs_once() -> None:
    kernel = Kernel()
    ahead.rehearsed(lambda: passes(kernel), torch.device("cpu"))
    assert [how for how, *_ in kernel.asked] == ["started", "started"]


def test_what_fails_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError, match="no such"):
        ahead.rehearsed(lambda: (_ for _ in ()).throw(RuntimeError("no such")), torch.device("cuda"))
    kernel = Kernel()
    ahead.start(kernel, 1, [], {})
    assert kernel.asked[0][0] == "started"


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of perceptrons too, whatever device is the current one."""
    entered: list[Any] = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            pass

    class Recipe:
        def launch(self, how: Any, kernel: Any) -> dict[str, Any]:
            return {"num_warps": 4}

    class Elsewhere(torch.Tensor):
        is_cuda, device = True, torch.device("cuda:1")  # type: ignore[assignment]

    monkeypatch.setattr(torch.cuda, "device", Device)
    kernel, given = Kernel(), Elsewhere()
    given_to_all: Any = Recipe()
    mlp_launch.launch(kernel, 3, given_to_all, given_to_all, given)
    table.launch(kernel, 3, given)
    assert entered == [torch.device("cuda:1")] * 2 and [how for how, *_ in kernel.asked] == ["started"] * 2

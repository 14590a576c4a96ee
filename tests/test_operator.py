"""Operators with a backward pass: answers that nobody asked for, and what is kept for backward only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from miras.kernels.operator import Differentiable, Operator

seen: list[tuple[Tensor, ...]] = []


def _twice(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 2 * x, 3 * x, x.exp()


def _twice_backward(x: Tensor, d_double: Tensor, d_triple: Tensor) -> Tensor:
    return 2 * d_double + 3 * d_triple


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _pull(pull: Any, ctx: Any, *grads: Tensor) -> Tensor:
    seen.append(grads)
    return pull(*ctx.saved_tensors, *grads)


def _blank(x: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)


back = Operator("test_twice_backward", _twice_backward, lambda x, *_: torch.empty_like(x))
twice = Differentiable("test_twice", _twice, _blank, _setup, _pull, back, answers=range(2))


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("call", [twice, twice.node], ids=["called", "compiled"])
def test_zeros_stand_for_answers_alone(call: Any, asked: int) -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    call(x)[asked].sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full_like(x, 2 + asked))
    given = seen.pop()
    assert len(given) == 2 and given[1 - asked].eq(0).all() and given[1 - asked].dtype == x.dtype

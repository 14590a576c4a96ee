"""Layer norms of the answers of a memory as an operator, plus what they add to; see `miras.kernels._shared.answers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch

LAUNCH = {"R": 64, "num_warps": 4}
"""Rows of a program, and its warps."""


def _answers(y: Tensor, q: Tensor | None, eps: float) -> Tensor:
    """``norm(y) + q`` of contiguous rows, whose width is a power of two."""
    from miras.kernels._shared import answers as kernels

    y, q = y.contiguous(), None if q is None else q.contiguous()
    out, width = torch.empty_like(y), y.shape[-1]
    count = y.numel() // width
    launch(kernels.answers, -(-count // LAUNCH["R"]), y, q, out, count, eps, O=width, ADD=q is not None, **LAUNCH)
    return out


def _answers_backward(y: Tensor, upstream: Tensor, eps: float) -> Tensor:
    from miras.kernels._shared import answers as kernels

    y, upstream = y.contiguous(), upstream.contiguous()
    out, width = torch.empty_like(y), y.shape[-1]
    count = y.numel() // width
    launch(kernels.answers_backward, -(-count // LAUNCH["R"]), y, upstream, out, count, eps, O=width, **LAUNCH)
    return out


def _blank(y: Tensor, *_: Any) -> Tensor:
    return y.new_empty(y.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, q, ctx.eps = inputs
    ctx.save_for_backward(y)
    ctx.adds = q is not None


def _backward(pull: Any, ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    [y] = ctx.saved_tensors
    return pull(y, upstream, ctx.eps), upstream if ctx.adds else None, None


answers_backward = Operator("answers_backward", _answers_backward, _blank)
answers = Differentiable("answers", _answers, _blank, _setup, _backward, answers_backward)

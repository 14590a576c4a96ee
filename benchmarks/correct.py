"""The gate: no number is printed for a layer that does not compute its own reference."""

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks import exact, ours, process
from benchmarks.layer import Shape
from benchmarks.token_loop import token_loop
from miras import Memory

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3}
TINY = Shape(batch=2, length=22, dim=32, heads=2, head_dim=16, expansion=2, chunk=8)


def measure() -> dict[str, Any]:
    """Relative errors against float64, and whether all of them are within their bounds."""
    checks = {}
    for dtype, bound in BOUNDS.items():
        checks[f"layer {dtype}"] = (_layer(dtype), bound)
        checks[f"exact path {dtype}"] = (_exact(dtype), bound)
    return {
        "errors": {name: error for name, (error, _) in checks.items()},
        "green": all(error <= bound for error, bound in checks.values()),
    }


def _layer(dtype: torch.dtype) -> float:
    """The layer that is timed against the reference path, outputs and all gradients."""
    torch.manual_seed(0)
    memory = ours.build(TINY)
    x = torch.randn(TINY.batch, TINY.length, TINY.dim, dtype=torch.float64)
    fast = _observe(copy.deepcopy(memory).to(dtype), x.to(dtype))
    return _error(fast, _observe(memory.double(), x, path="reference"))


def _exact(dtype: torch.dtype) -> float:
    """The exact path against the token loop, outputs and all gradients."""
    inputs = exact.inputs(length=70)
    fast = exact.gradients(exact.exact_path, [x.to(dtype) for x in inputs])
    return _error(fast, exact.gradients(token_loop, [x.double() for x in inputs]))


def _observe(memory: Memory, x: Tensor, **path: str) -> list[Tensor]:
    x = x.requires_grad_()
    y, _ = memory(x, **path)
    wanted = [x, *memory.parameters()]
    gradients = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
    pairs = zip(wanted, gradients, strict=True)
    return [y.detach(), *(torch.zeros_like(w) if g is None else g for w, g in pairs)]


def _error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest of the tensors' errors, each relative to the largest entry of its tensor."""
    errors = [
        ((g.double() - w).abs().max() / w.abs().max().clamp(min=1e-12)).nan_to_num(torch.inf)
        for g, w in zip(got, wanted, strict=True)
    ]
    return float(torch.stack(errors).max())


if __name__ == "__main__":
    process.answer(measure)

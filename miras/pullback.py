"""Vector-Jacobian products wherever torch runs: under its functional transforms, its compiler and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Aux = TypeVar("Aux")
Tensors = dict[str, Tensor]


def vjp(
    f: Callable[[Tensors], tuple[Tensor, Aux]], x: Mapping[str, Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensors], Aux]:
    """``y, aux = f(x)`` (aux a tree of tensors) and the map from an error at ``y`` to the errors at ``x``, which is differentiable again.

    ``torch.func`` refuses to run while saved tensors are intercepted, as inside ``torch.utils.checkpoint`` without
    reentry; there plain autograd does the same.
    """
    if not _intercepted():
        y, pull, aux = torch.func.vjp(f, dict(x), has_aux=True)  # pyright: ignore[reportAssignmentType]
        return y, lambda error: pull(error)[0], aux
    with torch.enable_grad():
        # a view has its own place in the graph: what else depends on x is not counted
        leaves = {n: t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for n, t in x.items()}
        y, aux = f(leaves)

    def autograd(error: Tensor) -> Tensors:
        found = torch.autograd.grad(y, list(leaves.values()), error, create_graph=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    return y, autograd, aux


def _intercepted() -> bool:
    """Whether hooks on saved tensors are active."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore

"""Operators: one node to compilers, plain functions otherwise, because a dispatcher takes as long as a small kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class Operator:
    """A function of tensors that launches kernels.

    Args:
        name: what compilers call it.
        function: annotated as `torch.library.custom_op` wants it; its outputs alias no input.
        fake: outputs of the same shapes from the same arguments, with nothing launched.
    """

    def __init__(self, name: str, function: Callable[..., Any], fake: Callable[..., Any]):
        self.function = function
        self.node = torch.library.custom_op(f"miras::{name}", mutates_args=())(function)
        self.node.register_fake(fake)

    def __call__(self, *arguments: Any) -> Any:
        return self.node(*arguments) if torch.compiler.is_compiling() else self.function(*arguments)


class Differentiable(Operator):
    """An operator with a backward pass.

    Args:
        name: what compilers call it.
        function: as of `Operator`.
        fake: as of `Operator`.
        setup: ``(ctx, inputs, output)`` keeps what backward needs.
        backward: ``(pull, ctx, *gradients)`` to gradients of the arguments; ``pull`` runs the next operator.
        pull: the operator that computes them.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fake: Callable[..., Any],
        setup: Callable[..., None],
        backward: Callable[..., Any],
        pull: Operator,
    ):
        super().__init__(name, function, fake)
        self.node.register_autograd(partial(backward, pull.node), setup_context=setup)
        once = once_differentiable(partial(backward, pull.function))
        methods = {"forward": function, "setup_context": setup, "backward": once}
        self.direct: Any = type(name, (torch.autograd.Function,), {n: staticmethod(f) for n, f in methods.items()})

    def __call__(self, *arguments: Any) -> Any:
        return self.node(*arguments) if torch.compiler.is_compiling() else self.direct.apply(*arguments)

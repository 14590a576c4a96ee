"""Operators: one node to compilers, plain functions otherwise, because a dispatcher takes as long as a small kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from miras.engine.fused import outside_functorch


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
        again: the same function in PyTorch, which takes over where the gradient itself will be differentiated; then ``ctx``
            has saved the tensors it begins with, and keeps its other arguments as ``how``. None: that is an error.
        answers: places of the outputs that have gradients; others are what backward needs. None: all.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fake: Callable[..., Any],
        setup: Callable[..., None],
        backward: Callable[..., Any],
        pull: Operator,
        again: Callable[..., Any] | None = None,
        answers: Sequence[int] | None = None,
    ):
        super().__init__(name, function, fake)
        if answers is not None:
            setup, backward = _answering(answers, setup), _filled(answers, backward)
        self.node.register_autograd(partial(backward, pull.node), setup_context=setup)
        once = partial(backward, pull.function)
        back = once_differentiable(once) if again is None else partial(_twice, once, again)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            setup(ctx, inputs, output)
            return output

        # PyTorch looks up the signature in every call of a function with a context of its own, which only transforms need
        self.direct = _function(name, forward=forward, backward=back)
        self.transformed = _function(name, forward=function, setup_context=setup, backward=back)

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.node(*arguments)
        return (self.direct if outside_functorch() else self.transformed).apply(*arguments)


def _answering(answers: Sequence[int], setup: Callable[..., None]) -> Callable[..., None]:
    """With no zeros, as large as all that is kept, in the place of gradients that nothing has."""

    def answering(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        setup(ctx, inputs, output)
        ctx.set_materialize_grads(False)
        ctx.answers = [(output[i].shape, output[i].dtype, output[i].device) for i in answers]

    return answering


def _filled(answers: Sequence[int], backward: Callable[..., Any]) -> Callable[..., Any]:
    """With the gradients of answers alone, and zeros for those that nobody asked for."""

    def filled(pull: Any, ctx: Any, *grads: Tensor | None) -> Any:
        asked = zip((grads[i] for i in answers), ctx.answers, strict=True)
        return backward(pull, ctx, *(torch.zeros(n, dtype=t, device=d) if g is None else g for g, (n, t, d) in asked))

    return filled


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    return type(name, (torch.autograd.Function,), {n: staticmethod(f) for n, f in methods.items()})


def _twice(once: Callable[..., Any], again: Callable[..., Any], ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by the kernel, or, where they will be differentiated, by PyTorch."""
    if not torch.is_grad_enabled():
        return once(ctx, *grads)
    saved = ctx.saved_tensors
    output = again(*saved, *ctx.how)
    pairs = zip((output,) if isinstance(output, Tensor) else output, grads, strict=True)
    outputs, upstream = zip(*((y, g) for y, g in pairs if y.requires_grad), strict=True)
    wanted = [x for x in saved if x.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=True, allow_unused=True))
    return *(next(found) if x.requires_grad else None for x in saved), *[None] * len(ctx.how)

"""One token through a kernel of its own, for generation: nothing to differentiate, any phase, weights where they are.

Shapes: B batch, H heads, J = 1 + K memory and slots, I, F and O key, hidden and value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from miras.architectures import MLP
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.weights import Shapes, advance, opened
from miras.kernels import residuals
from miras.kernels._matrix.launches import rowed
from miras.kernels._mlp import launch as mlp_launch
from miras.kernels._mlp import parts
from miras.kernels._shared import step
from miras.kernels.matrix import bias_gate, errors, free, readers
from miras.kernels.operator import Operator
from miras.kernels.table import launch, power
from miras.spec import MirasSpec
from miras.state import MemoryState


def matrix(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """One token of a memory that `miras.kernels.matrix` computes."""
    state, name = opened(spec, state), next(iter(shapes))
    solve = spec.chunk_size == 1 and not free(spec)
    bias, value, _, gate = errors(spec, x, False)
    seen = readers(spec, algorithm_gates(spec, x), x, 1, solve)
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    given = (queries, keys, value, *_contiguous(x, gate), *seen[:4], seen.key_rows)
    y, end = matrix_step(*given, *weights(state, name), bias)
    return y, advance(spec, shapes, after(state, {name: end}), 1)


def perceptron(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """One token of a memory that `miras.kernels.mlp` computes."""
    assert isinstance(spec.architecture, MLP)
    state = opened(spec, state)
    seen = readers(spec, algorithm_gates(spec, x), x, 1, False)
    recipe = mlp_launch.key(spec.architecture, spec.bias, width=shapes["w_2"].shape[1])
    stacks = (*weights(state, "w_1"), *weights(state, "w_2"))
    y, end1, end2 = perceptron_step(x.q, x.k, x.v, *_contiguous(x, bias_gate(spec, x)), *seen[:4], *stacks, recipe)
    return y, advance(spec, shapes, after(state, {"w_1": end1, "w_2": end2}), 1)


def _contiguous(x: Inputs, gate: Tensor | None) -> list[Tensor | None]:
    """Rate, bound and the bias's gate of the token."""
    return [None if t is None else t.contiguous() for t in (x.pair["lr"], x.pair.get("inverse_bound"), gate)]


def weights(state: MemoryState, name: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Memory, slots and anchor of one weight."""
    return state.memory[name], state.slots.get(name), state.anchor[name]


def after(state: MemoryState, ends: dict[str, Tensor]) -> MemoryState:
    """The state with the stacks ``[B, H, J, in, out]`` in the place of its weights."""
    slots = {n: w[:, :, 1:] for n, w in ends.items()} if state.slots else {}
    return state._replace(memory={n: w[:, :, 0] for n, w in ends.items()}, slots=slots)


def _matrix_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    key_rows: Tensor | None,
    memory: Tensor,
    slots: Tensor | None,
    anchor: Tensor,
    bias: str,
) -> tuple[Tensor, Tensor]:
    """Answers ``[B, H, 1, O]`` and the stack after the token; arguments as of `miras.kernels._matrix.ops.matrix`.

    Args:
        gate: of the bias, or the slope of an affine residual where ``key_rows`` says what the prediction sees.
        memory: ``[B, H, I, O]``.
        slots: ``[B, H, K, I, O]``.
        anchor: ``[B, H, I, O]``.
    """
    found, (B, H, I, O), J = residuals.recall(bias), memory.shape, rows.shape[-2]
    y, end = _blank(v, memory, J)
    block = power(O) if found.rowwise or inverse is not None else min(power(O), 32)
    q, k, v = (rowed(t) for t in (q, k, v))
    stack, layout = _placed(memory, slots, anchor)
    launch(
        step.matrix_step, B * H * -(-O // block),
        q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, *stack, y, end,
        *_strides(q, k, v, gate), *layout, H, I, O,
        J=J, BI=power(I), BV=block, NV=-(-O // block), BOUND=inverse is not None,
        SOLVE=key_rows is not None, GATE=0 if gate is None else gate.dim() - 2, RESIDUAL=found.residual,
        CONSTANTS=found.constants, num_warps=4,
    )  # fmt: skip
    return y, end


def _perceptron_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr: Tensor,
    inverse: Tensor | None,
    gate: Tensor | None,
    rows: Tensor,
    pairs: Tensor,
    into: Tensor,
    mix: Tensor,
    memory1: Tensor,
    slots1: Tensor | None,
    anchor1: Tensor,
    memory2: Tensor,
    slots2: Tensor | None,
    anchor2: Tensor,
    recipe: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers ``[B, H, 1, O]`` and both stacks after the token."""
    how, J = mlp_launch.recall(recipe), rows.shape[-2]
    found = residuals.recall(how.bias)
    B, H, I, F = memory1.shape
    y, end1 = _blank(v, memory1, J)
    _, end2 = _blank(v, memory2, J)
    q, k, v = (rowed(t) for t in (q, k, v))
    first, layout1 = _placed(memory1, slots1, anchor1)
    second, layout2 = _placed(memory2, slots2, anchor2)
    launch(
        step.perceptron_step, B * H,
        q, k, v, lr, inverse, gate, rows, pairs, into, mix, *first, *second, y, end1, end2,
        *_strides(q, k, v, gate), *layout1, *layout2, H,
        J=J, I=I, F=F, O=v.shape[-1], BF=next(n for n in (64, 32, 16) if F % n == 0), BOUND=inverse is not None,
        GATE=0 if gate is None else gate.dim() - 2, BIAS=found.residual, P=found.constants,
        ACT=getattr(parts, how.activation), NORM=how.norm, RESIDUAL=how.residual,
        EPS=how.eps, WIDTH=how.width, num_warps=8,
    )  # fmt: skip
    return y, end1, end2


def _blank(v: Tensor, memory: Tensor, stacked: int) -> tuple[Tensor, Tensor]:
    B, H, *size = memory.shape
    return v.new_empty(v.shape), memory.new_empty(B, H, stacked, *size)


def _placed(memory: Tensor, slots: Tensor | None, anchor: Tensor) -> tuple[list[Tensor], list[int]]:
    """The weights as arguments of a kernel, numbers of a matrix in their order, and where heads begin.

    Without slots the memory stands in their place, and is not read there.
    """
    stack = [memory, memory.unsqueeze(2) if slots is None else slots, anchor]
    stack = [x if x.stride()[-2:] == (x.shape[-1], 1) else x.contiguous() for x in stack]
    return stack, [*stack[0].stride()[:2], *stack[1].stride()[:3], *stack[2].stride()[:2]]


def _strides(*tensors: Tensor | None) -> Iterator[int]:
    """Of batch and heads."""
    return (s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2]))


def _blank_matrix(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _blank(arguments[2], arguments[11], arguments[6].shape[-2])


def _blank_perceptron(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, end1 = _blank(arguments[2], arguments[10], arguments[6].shape[-2])
    return y, end1, _blank(arguments[2], arguments[13], arguments[6].shape[-2])[1]


matrix_step = Operator("matrix_step", _matrix_step, _blank_matrix)
perceptron_step = Operator("perceptron_step", _perceptron_step, _blank_perceptron)

r"""The token-by-token recurrence of nonlinear or deep memories by fixed-point sweeps over a block.

Guess the gradients of all tokens, read every token's weights $A_{t-1}$ from the guess in factored form, take the gradients
there, repeat. Token t is right once the tokens before it are, so n sweeps over n tokens are exact; usually a few are
enough, the fewer the smaller $\eta\|k\|^2$. The gradient is the transposed solve at the fixed point: the sweep's
Jacobian is strictly causal, so that too ends after n sweeps.

Shapes: B batch, H heads, n tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miras.engine.factored import Factored, factored
from miras.engine.segment import Factor, Segment, bias_gates, weigh
from miras.engine.weights import Shapes
from miras.state import MemoryState

Flat = list[Tensor]


def block(seg: Segment, tolerance: float, sweeps: list[int] | None = None) -> tuple[Tensor, MemoryState]:
    """Tokens that are chunks of their own; ``sweeps``, if given, is told how many were needed."""

    def sweep(flat: Flat) -> Flat:
        return _flatten(_gradients(seg, _factors(seg.shapes, flat)))

    flat = solve(sweep, _start(seg), seg.x.length, tolerance, sweeps)
    y, after = factored(seg, _factors(seg.shapes, flat), seg.state.extra, previous=seg.spec.read != "after")
    return y, after._replace(anchor=after.memory)


def _gradients(seg: Segment, factors: dict[str, Factor]) -> dict[str, Factor]:
    """One sweep: the weighted gradient of every token at the weights the factors of the tokens before it give."""
    spec, x = seg.spec, seg.x
    tap = spec.architecture.tap(Factored(seg, factors, previous=True), x.k)
    error = spec.algorithm.error(spec.bias, tap.prediction, x.v, tap.prediction, bias_gates(spec, x.pair))
    errors = tap.pull(error)
    found = {}
    for n, weight in seg.shapes.items():
        d, inputs = errors[n], None
        if weight.kind == "dense":
            d, inputs = spec.algorithm.adjust(d, tap.outputs[n]), tap.inputs[n]
        factor = weigh(spec, weight, Factor(inputs, d), x.pair)
        found[n] = factor if factor.x is None else Factor(*factor.pair())
    return found


def _start(seg: Segment) -> Flat:
    """Gradients of nothing written: the first sweep then sees the decayed start."""
    x = seg.x
    view = Factored(seg, {n: _nothing(seg, n) for n in seg.shapes}, previous=True)
    with torch.no_grad():
        tap = seg.spec.architecture.tap(view, x.k)
        inputs = tap.inputs
        errors = tap.pull(torch.zeros_like(tap.prediction))
    flat: Flat = []
    for n, weight in seg.shapes.items():
        flat += [inputs[n], errors[n]] if weight.kind == "dense" else [errors[n]]
    return flat


def _nothing(seg: Segment, name: str) -> Factor:
    weight, q = seg.shapes[name], seg.x.q
    if weight.kind != "dense":
        return Factor(None, q.new_zeros(*q.shape[:3], *weight.shape))
    return Factor(q.new_zeros(*q.shape[:3], weight.shape[0]), q.new_zeros(*q.shape[:3], weight.shape[1]))


def _factors(shapes: Shapes, flat: Sequence[Tensor]) -> dict[str, Factor]:
    rest = iter(flat)
    return {
        n: Factor(next(rest), next(rest)) if w.kind == "dense" else Factor(None, next(rest)) for n, w in shapes.items()
    }


def _flatten(factors: dict[str, Factor]) -> Flat:
    return [t for f in factors.values() for t in (f.x, f.d) if t is not None]


def solve(sweep, start: Flat, limit: int, tolerance: float, sweeps: list[int] | None = None) -> Flat:  # type: ignore[no-untyped-def]
    """The fixed point of a strictly causal map of ``limit`` tokens, differentiable through the implicit function theorem."""
    with torch.no_grad():
        z, moved, used = start, float("inf"), 0
        while used < limit and not moved <= tolerance:
            new = sweep(z)
            z, moved, used = new, _distance(new, z), used + 1
        if sweeps is not None:
            sweeps.append(used)
    if not torch.is_grad_enabled():
        return z
    leaves = [t.detach().requires_grad_() for t in z]
    image = sweep(leaves)
    if not any(t.requires_grad for t in image):
        return image
    return list(_Implicit.apply(limit, tolerance, leaves, *image))


class _Implicit(torch.autograd.Function):
    """Passes the image through; backward solves ``g = upstream + J^T g``, which ends because J is nilpotent."""

    @staticmethod
    def forward(ctx, limit: int, tolerance: float, leaves: Flat, *image: Tensor):  # type: ignore[no-untyped-def]
        ctx.limit, ctx.tolerance, ctx.leaves, ctx.image = limit, tolerance, leaves, image
        return tuple(t.clone() for t in image)

    @staticmethod
    def backward(ctx, *upstream: Tensor):  # type: ignore[no-untyped-def]
        total = list(upstream)
        for _ in range(ctx.limit):
            pulled = torch.autograd.grad(ctx.image, ctx.leaves, total, retain_graph=True, allow_unused=True)
            new = [u if p is None else u + p for u, p in zip(upstream, pulled, strict=True)]
            done = _distance(new, total) <= ctx.tolerance
            total = new
            if done:
                break
        return (None, None, None, *total)


def _distance(a: Flat, b: Flat) -> float:
    """Largest relative change of any tensor."""
    return max((((x - y).norm() / x.norm().clamp_min(1e-30)).item() for x, y in zip(a, b, strict=True)), default=0.0)

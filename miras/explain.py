"""What a memory will do on this spec: the path, why not a faster one, and what a token costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from miras.associative import AssociativeMemory
from miras.engine.plan import Plan
from miras.engine.weights import Shapes
from miras.spec import MirasSpec


@dataclass(frozen=True)
class Explanation:
    """The plan of a layer and its cost; ``print`` it.

    Attributes:
        spec: the memory.
        plan: the path and the reasons against faster ones.
        heads: number of heads.
        state_bytes: bytes of state for one row, all heads, float32.
        segment_bytes: the largest intermediate tensors of one segment and row, all heads, float32, without autograd's copies.
        flops_per_token: matrix-product FLOPs of the forward pass for one token, all heads.
    """

    spec: MirasSpec
    plan: Plan
    heads: int
    state_bytes: int
    segment_bytes: int
    flops_per_token: int

    def __str__(self) -> str:
        path = self.plan.path if self.plan.kernel is None else f"kernel {self.plan.kernel.name!r}"
        rows = [("path", f"{path}, {self.plan.tile} tokens at a time")]
        rows += [(path, f"no: {reason}") for path, reason in self.plan.refused.items()]
        rows += [
            ("state", f"{_size(self.state_bytes)} a row ({self.heads} heads, float32)"),
            ("peak", f"{_size(self.segment_bytes)} a row in one segment, before autograd"),
            ("cost", f"{self.flops_per_token / 1e6:.3g} MFLOP a token, forward"),
        ]
        return "\n".join(f"{name:<13} {text}" for name, text in rows)


def explain(
    core: AssociativeMemory,
    d_key: int,
    d_value: int,
    heads: int,
    pairs: int = 1,
    where: tuple[torch.device, torch.dtype] | None = None,
) -> Explanation:
    """Explains ``core`` on heads of these widths, for inputs of that device and dtype."""
    core = core.main
    spec, shapes, plan = core.spec, core.shapes(d_key, d_value), core.plan(d_key, d_value, pairs, where)
    with torch.device("meta"):
        raw = {n: torch.empty(1, *w.shape) for n, w in shapes.items()}
    state = core.initial_state(raw, 1, d_key, d_value, pairs)
    sizes = [_cost(spec, plan, shapes, n, pairs) for n in shapes]
    return Explanation(
        spec,
        plan,
        heads,
        state_bytes=heads * state.nbytes,
        segment_bytes=4 * heads * max(floats for floats, _ in sizes),
        flops_per_token=heads * sum(flops for _, flops in sizes),
    )


def _cost(spec: MirasSpec, plan: Plan, shapes: Shapes, name: str, pairs: int) -> tuple[int, int]:
    """Floats of the largest intermediate of one weight in one segment, and FLOPs a token."""
    weight, n = shapes[name], plan.tile
    size, slots = math.prod(weight.shape), spec.algorithm.slots
    p = n * pairs + spec.algorithm.window - 1
    path = plan.around if plan.path == "kernel" else plan.path
    if path == "reference":
        return (2 + slots) * size, (8 + 4 * slots) * size
    if path == "materialised" or weight.kind != "dense":
        # every token's gradient, filtered sum and weight; sums over the segment for decay and filter
        return (p + 2 * n) * size, 2 * size * (3 + p / n + n + (p if slots or p > n else 0)).__ceil__()
    i, o = weight.shape
    written = 1 + slots if spec.algorithm.enters is None else len(spec.algorithm.enters)
    # forward and pull-back at the anchor, carried part of the read, write of memory and slots; then inside the segment,
    # which nothing reads where queries see the anchor
    anchored = path == "factored" and spec.read == "anchor"
    carried = 2 * i * o * (2 + (1 if anchored else 1 + slots) + written) * max(1, p // n)
    inside = 0 if anchored else 2 * p * (i + o) + 2 * n * p // max(n, 1)
    solve = n * o if path == "exact" else 0
    return (1 if anchored else n) * p + (n + p) * (i + o) + (1 + slots) * size, carried + inside + solve


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.3g} GiB"

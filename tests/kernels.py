"""What the tests of Triton kernels share: problems in their dtype, and the same on a path in float64.

Kernels run in Triton's interpreter, or on a device if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from miras import AssociativeMemory
from miras.engine.plan import Path
from miras.testing import TOLERANCE, relative
from miras.testing.laws import probe, tensors
from miras.testing.problems import Problem

# the interpreter computes float32 only, and float32 stays in PyTorch on a device
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)

KINKED = ("huber", "yaad")
"""Biases whose derivative jumps: rounding a prediction to 16 bits moves it across the jump now and then."""


def results(p: Problem, path: Path | None) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Outputs and final state, and gradients of every input and of the initial state, by name."""
    leafy, leaves = p.leaves()
    y, state = leafy.run(path)
    outputs = [x for x in tensors(y, state).values() if x.requires_grad]
    gradients = torch.autograd.grad(_probe(outputs), list(leaves.values()), allow_unused=True)
    return tensors(y.detach(), state.detach()), dict(zip(leaves, gradients, strict=True))


def _probe(outputs: list[Tensor]) -> Tensor:
    return probe([x.cpu() for x in outputs])


def wide(p: Problem) -> Problem:
    """The same numbers in float64 on the CPU."""
    return replace(p.map(lambda x: x.cpu().double()), state=p.state.map(lambda x: x.cpu().double()))


def cast(p: Problem, dtype: torch.dtype, device: str) -> Problem:
    """The problem with operands of that dtype; gates and state are float32."""
    gates = {g: x.float().to(device) for g, x in p.gates.items()}
    moved = p.map(lambda x: x.to(device, dtype))
    return replace(moved, gates=gates, state=p.state.map(lambda x: x.float().to(device)))


def agrees(p: Problem, dtype: torch.dtype, device: str) -> None:
    """Everything within the tolerance, against the fastest PyTorch path in float64 on the very same numbers."""
    p = cast(p, dtype, device)
    exact = wide(p)
    wanted, wanted_gradients = results(exact, AssociativeMemory(p.spec).plan(p.q.shape[-1], p.v.shape[-1]).path)
    got, gradients = results(p, "kernel")
    if dtype != torch.float32 and p.spec.bias.name.startswith(KINKED):
        wanted_gradients = {}
    scale = max((g.norm().item() for g in wanted_gradients.values() if g is not None), default=0.0)
    errors = {n: relative(got[n].cpu().double(), x) for n, x in wanted.items()}
    for n, g in wanted_gradients.items():
        mine = gradients[n]
        errors[f"d {n}"] = relative(None if mine is None else mine.cpu().double(), g, floor=max(1e-3 * scale, 1e-6))
    bad = {n: e for n, e in errors.items() if not e <= TOLERANCE["kernel"][dtype]}
    assert not bad, bad


def close(a: Tensor, b: Tensor) -> None:
    assert relative(a.detach().float(), b.detach().float()) <= TOLERANCE["kernel"][DTYPE]


def compiles(p: Problem, *wrt: str) -> None:
    """In one graph, with the same outputs, final state and gradients with respect to the leaves of these names."""
    core = AssociativeMemory(p.spec, "kernel")
    torch.compiler.reset()

    def everything(call: Callable[..., Any]) -> list[Tensor]:
        leafy, leaves = p.leaves()
        y, state = call(leafy.q, leafy.k, leafy.v, leafy.gates, leafy.state)
        out = [y, *state.memory.values(), *state.slots.values()]
        total = torch.stack([x.square().sum() for x in out]).sum()
        return [*out, *torch.autograd.grad(total, [leaves[n] for n in wrt])]

    got, wanted = everything(torch.compile(core.__call__, fullgraph=True, backend="aot_eager")), everything(core)
    for a, b in zip(got, wanted, strict=True):
        close(a, b)

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
from miras.testing import TOLERANCE, relative, rounding
from miras.testing.laws import tensors
from miras.testing.problems import Problem
from tests import interpreter

# the interpreter computes float32 only, and float32 stays in PyTorch on a device
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)

if DEVICE == "cpu":
    interpreter.install()

KINKED = ("huber", "yaad")
"""Biases whose derivative jumps: rounding a prediction to 16 bits moves it across the jump now and then."""


Results = tuple[dict[str, Tensor], dict[str, Tensor | None]]
"""Outputs and final state; gradients; by name."""


def results(p: Problem, path: Path | None, answers: torch.dtype | None = None) -> Results:
    """Outputs, in ``answers`` if given, and final state, and gradients of every input and of the initial state, by name."""
    leafy, leaves = p.leaves()
    y, state = leafy.run(path)
    y = y if answers is None else y.to(answers)
    outputs = [x for x in tensors(y, state).values() if x.requires_grad]
    g = torch.Generator().manual_seed(0)
    # where the outputs are: a functional on the CPU has gradients arrive, and be added up, in the order of two threads
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights, allow_unused=True)
    return tensors(y.detach(), state.detach()), dict(zip(leaves, gradients, strict=True))


def same_bits_twice(p: Problem) -> None:
    """Outputs, state and gradients of two calls in bfloat16, on a device."""
    first, second = (results(cast(p, torch.bfloat16, "cuda"), "kernel") for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for n, x in a.items():
            y = b[n]
            assert (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y)), n


def wide(p: Problem) -> Problem:
    """The same numbers in float64 on the CPU."""
    return replace(p.map(lambda x: x.cpu().double()), state=p.state.map(lambda x: x.cpu().double()))


def cast(p: Problem, dtype: torch.dtype, device: str) -> Problem:
    """The problem with operands of that dtype; gates and state are float32."""
    gates = {g: x.float().to(device) for g, x in p.gates.items()}
    moved = p.map(lambda x: x.to(device, dtype))
    return replace(moved, gates=gates, state=p.state.map(lambda x: x.float().to(device)))


def agrees(p: Problem, dtype: torch.dtype, device: str) -> None:
    """Against the fastest PyTorch path in float64 on the very same numbers: everything within the tolerance.

    What narrow operands cost there as well, twice, is allowed: products of rounded numbers, and a rounded gradient coming in.
    """
    p = cast(p, dtype, device)
    exact = wide(p)
    path = AssociativeMemory(p.spec).plan(p.q.shape[-1], p.v.shape[-1]).path
    wanted = results(exact, path)
    bad = {
        n: e for n, e in errors(results(p, "kernel"), wanted, p, dtype).items() if not e <= TOLERANCE["kernel"][dtype]
    }
    if bad and dtype != torch.float32:
        bad = rounding.unexplained(bad, lambda: errors(results(exact, path, dtype), wanted, p, dtype), dtype)
    assert not bad, bad


def errors(got: Results, wanted: Results, p: Problem, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors by name, of gradients too, but where rounding crosses kinks."""
    (tensors, gradients), (exact, slopes) = got, wanted
    if dtype != torch.float32 and p.spec.bias.name.startswith(KINKED):
        slopes = {}
    scale = max((g.norm().item() for g in slopes.values() if g is not None), default=0.0)
    errors = {n: relative(tensors[n].cpu().double(), x) for n, x in exact.items()}
    for n, g in slopes.items():
        mine = gradients[n]
        errors[f"d {n}"] = relative(None if mine is None else mine.cpu().double(), g, floor=max(1e-3 * scale, 1e-6))
    return errors


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

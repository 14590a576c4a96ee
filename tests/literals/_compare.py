"""From a problem of the library to the row vectors of a transcription, and back to what both made of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import assume
from torch import Tensor

from literals._shared import Remembered
from miras import AssociativeMemory
from miras.engine.weights import read_weights
from miras.gates import Gate
from miras.state import MemoryState
from miras.testing import Problem, relative
from miras.testing.laws import probe

Gradients = Mapping[str, Tensor | None]


def row(x: Tensor) -> Tensor:
    """``[B, T, H, ..., D]`` as the row vectors of the transcriptions."""
    return x.movedim(1, 0).unsqueeze(-2)


def column(x: Tensor) -> Tensor:
    """Learned numbers of heads, ``[H]``, ``[H, D]`` or ``[H, I, O]``, as the row vectors' companions."""
    return x[:, None] if x.dim() == 2 else x if x.dim() == 3 else x[:, None, None]


def memory(p: Problem, state: MemoryState) -> dict[str, Any]:
    """A state under the names that papers use: weights, accumulators, momenta (which they add), the inverse covariance."""
    after = replace(p.spec, read="after")  # the weights themselves, whatever answers read
    weights = read_weights(after, AssociativeMemory(p.spec).shapes(p.q.shape[-1], p.v.shape[-1]), state)
    return {"W": weights, "A": state.memory, "S": {n: -s[:, :, 0] for n, s in state.slots.items()}, **state.extra}


def transcribed(
    p: Problem,
    recurrence: Callable[..., Remembered],
    gates: Mapping[str, Gate] | None = None,
    learned: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What the transcription makes of a problem: answers ``y`` and what it remembers.

    ``gates`` are those of the problem where they are not those of its spec, ``learned`` numbers that a layer has besides.
    """
    start = memory(p, p.state)
    given = {n: row(x) for n, x in (("q", p.q), ("k", p.k), ("v", p.v))} | start
    given |= {n: column(x) for n, x in (learned or {}).items()}
    given |= {"chunk": p.spec.chunk_size, "window": p.spec.algorithm.window}
    for name, gate in (p.spec.gates if gates is None else gates).items():
        x = p.gates[name].exp() if name.startswith("log_") else p.gates[name]
        given[name.removeprefix("log_")] = measured(x, gate.per, list(p.state.memory))
    if "replay.k" in start:
        past = {"k": start["replay.k"], "v": start["replay.v"], "gamma": start["replay.gamma"][..., None]}
        given["past"] = [x.movedim(2, 0).unsqueeze(-2) for x in past.values()]
    given["start"] = {n: start[f"start.{n}"] for n in p.state.memory if f"start.{n}" in start}
    wanted = inspect.signature(recurrence).parameters
    if "M" not in wanted:  # of a single weight
        given |= {n: next(iter(x.values())) for n, x in given.items() if isinstance(x, dict) and x}
    y, end = recurrence(**{n: x for n, x in given.items() if n in wanted})
    return {"y": torch.stack(y)} | end


def measured(gate: Tensor, per: str, weights: list[str]) -> Any:
    """A gate shaped to multiply a row, a matrix's rows or columns, or by the name of the weight it is for."""
    match per:
        case "key":
            return row(gate).mT
        case "value":
            return row(gate)
        case "weight":
            return {n: row(gate[..., i : i + 1]) for i, n in enumerate(weights)}
        case _:
            return row(gate[..., None])


def flat(named: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of one name side by side."""
    each = {n: x if isinstance(x, dict) else {"w": x} for n, x in named.items()}
    return {f"{n}/{w}": x for n, weights in each.items() for w, x in weights.items()}


def close(got: Gradients, wanted: Gradients, tolerance: float, floor: float = 1e-3) -> None:
    errors = {n: relative(got[n], x, floor) for n, x in wanted.items()}
    assert all(e <= tolerance for e in errors.values()), errors


def same(got: dict[str, Any], wanted: dict[str, Any], leaves: dict[str, Tensor], tolerance: float) -> None:
    """Asserts that answers, memories and the gradients of every leaf agree."""
    wanted, got = flat(wanted), flat(got)
    close(got, wanted, tolerance)

    def gradients(of: dict[str, Tensor]) -> Gradients:
        total = probe(of[n] for n in wanted)
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))

    exact = gradients(wanted)
    scale = max(g.norm().item() for g in exact.values() if g is not None)
    assume(scale < 1e5)  # else rounding has grown as much
    close(gradients(got), exact, tolerance, max(1e-3 * scale, 1e-6))

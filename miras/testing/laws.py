"""What every memory must obey, as plain functions of a problem; each raises an AssertionError that says what broke.

A law that does not apply to a spec raises `Inapplicable` with the reason. Preconditions are claims of components.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.engine.plan import Path, free_of_chunks
from miras.engine.plan import picard as picard_refused
from miras.spec import AXES, MirasSpec
from miras.state import MemoryState
from miras.testing.problems import Problem
from miras.testing.tolerances import LOOSE_SPLIT, SPLIT, TOLERANCE, relative


class Inapplicable(Exception):
    """The law says nothing about this spec."""


def close(errors: dict[str, float], tolerance: float, what: str) -> None:
    """Asserts that every relative error is small (NaN is not)."""
    bad = {name: e for name, e in errors.items() if not e <= tolerance}
    assert not bad, f"{what}: relative errors {bad} exceed {tolerance}"


def tensors(y: Tensor, state: MemoryState) -> dict[str, Tensor]:
    """An output and all tensors of a state by name."""
    return {"y": y, **{n: x for n, x in state.tensors().items() if n != "phase"}}


def compare(got: tuple[Tensor, MemoryState], wanted: tuple[Tensor, MemoryState], tolerance: float, what: str) -> None:
    """Asserts that outputs and states agree."""
    assert got[1].phase == wanted[1].phase, f"{what}: phases {got[1].phase} and {wanted[1].phase}"
    a, b = tensors(*got), tensors(*wanted)
    assert a.keys() == b.keys(), f"{what}: states hold {sorted(a)} and {sorted(b)}"
    close({n: relative(a[n], b[n]) for n in b}, tolerance, what)


def paths(spec: MirasSpec, problem: Problem) -> list[Path]:
    """The fast paths that claim this problem."""
    d_key, d_value = problem.q.shape[-1], problem.v.shape[-1]
    pairs = problem.k.shape[3] if problem.k.dim() == 5 else 1
    memory = AssociativeMemory(spec)
    found: list[Path] = [
        p for p in ("materialised", "factored", "fused", "exact") if p not in memory.plan(d_key, d_value, pairs).refused
    ]
    if not picard_refused(spec, memory.shapes(d_key, d_value), pairs):
        found.append("picard")
    return found


def probe(outputs: Iterable[Tensor]) -> Tensor:
    """A fixed random linear functional of some tensors: one number whose gradient sees them all."""
    g = torch.Generator().manual_seed(0)
    return sum((x.double() * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in outputs)  # type: ignore[return-value]


def with_gradients(
    problem: Problem, path: Path | None, tolerance: float | None
) -> tuple[tuple[Tensor, MemoryState], dict[str, Tensor | None]]:
    """Answers and state, and the gradient of a fixed functional of both with respect to every input, by name."""
    leafy, leaves = problem.leaves()
    y, state = leafy.run(path, tolerance)
    differentiable = [x for x in tensors(y, state).values() if x.requires_grad]
    gradients = torch.autograd.grad(probe(differentiable), list(leaves.values()), allow_unused=True)
    return (y.detach(), state.detach()), dict(zip(leaves, gradients, strict=True))


def every_path_is_the_reference(problem: Problem) -> None:
    """Law 1: outputs, final state, and gradients of every input and of the initial state."""
    wanted, wanted_gradients = with_gradients(problem, "reference", None)
    scale = max((g.norm().item() for g in wanted_gradients.values() if g is not None), default=1.0)
    dtype = problem.state.memory[next(iter(problem.state.memory))].dtype
    for path in paths(problem.spec, problem):
        got, gradients = with_gradients(problem, path, 1e-11 if path == "picard" else None)
        tolerance = path_tolerance(problem.spec, path, dtype)
        compare(got, wanted, tolerance, f"path {path}")
        errors = {n: relative(gradients[n], g, floor=max(1e-3 * scale, 1e-6)) for n, g in wanted_gradients.items()}
        close(errors, tolerance, f"gradients on path {path}")


def amplifies(spec: MirasSpec) -> bool:
    """Whether rounding grows inside one step: Newton-Schulz (by the inverse of the smallest singular values), conjugate
    gradients and Cholesky factors (by their condition), and root finding."""
    algorithm = spec.algorithm
    turns = not algorithm.direction_is_identity or (algorithm.settles and algorithm.needs_matrices)
    return turns or algorithm.linear_only or spec.retention.name == "f_divergence"


def path_tolerance(spec: MirasSpec, path: Path, dtype: torch.dtype) -> float:
    """How closely a path must follow the reference."""
    return TOLERANCE[path][dtype] * (100 if amplifies(spec) else 1)


def split_tolerance(spec: MirasSpec) -> float:
    """How exact splits are."""
    return LOOSE_SPLIT if amplifies(spec) else SPLIT


def splits_anywhere(problem: Problem, at: int) -> None:
    """Law 2: two calls with the state in between are one call; one token at a time too."""
    whole = problem.run()
    tolerance = split_tolerance(problem.spec)
    first, middle = problem.slice(0, at).run()
    second, end = replace(problem.slice(at, problem.length), state=middle).run()
    compare((torch.cat([first, second], 1), end), whole, tolerance, f"split at {at}")
    outputs, state = [], problem.state
    for t in range(problem.length):
        y, state = replace(problem.slice(t, t + 1), state=state).run()
        outputs.append(y)
    compare((torch.cat(outputs, 1), state), whole, tolerance, "token by token")


def masked_is_deleted(problem: Problem, mask: Tensor) -> None:
    """Law 2: skipping tokens is the same as a sequence without them, row by row."""
    tolerance = split_tolerance(problem.spec)
    y, state = replace(problem, mask=mask).run()
    for row in range(mask.shape[0]):
        alone = problem.rows([row]).map(lambda x, row=row: x[:, mask[row]])
        wanted = alone.run() if alone.length else (alone.v.new_zeros(1, 0, *y.shape[2:]), alone.state)
        compare((y[row : row + 1, mask[row]], state.select([row])), wanted, tolerance, f"mask, row {row}")
        assert not y[row, ~mask[row]].any(), "outputs of skipped tokens must be zero"


def packed_is_separate(problem: Problem, bounds: list[int]) -> None:
    """Law 2: documents packed into one row are separate calls."""
    one = problem.rows([0])
    states = one.state.select([0] * (len(bounds) - 1))
    memory = AssociativeMemory(problem.spec)
    y, state = memory(one.q, one.k, one.v, one.gates, states, cu_seqlens=torch.tensor(bounds))
    for i, (a, b) in enumerate(pairwise(bounds)):
        wanted = one.slice(a, b).run() if b > a else (y[:, a:b], one.state)
        compare((y[:, a:b], state.select([i])), wanted, split_tolerance(problem.spec), f"document {i}")


def causal(problem: Problem, at: int) -> None:
    """Law 4: what happens from ``at`` on changes nothing before it, bit for bit."""
    later = torch.arange(problem.length) >= at

    def change(x: Tensor) -> Tensor:
        where = later.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(where, 0.5 * x, x)

    before, _ = problem.run()
    after, _ = problem.map(change).run()
    close({"y": relative(after[:, :at], before[:, :at])}, 1e-14, f"outputs before a change at {at}")


def rows_and_heads_are_independent(problem: Problem) -> None:
    """Law 4: a row, and a head, alone gives what it gives among others."""
    y, state = problem.run()
    for row in range(y.shape[0]):
        compare(problem.rows([row]).run(), (y[row : row + 1], state.select([row])), SPLIT * 10, f"row {row} alone")
    for head in range(y.shape[2]):
        one = problem.map(lambda x, h=head: x[:, :, h : h + 1] if x.dim() > 2 else x)
        one = replace(one, state=problem.state.map(lambda x, h=head: x[:, h : h + 1]))
        compare(
            one.run(),
            (y[:, :, head : head + 1], state.map(lambda x, h=head: x[:, h : h + 1])),
            SPLIT * 10,
            f"head {head} alone",
        )


def nothing_learned_is_pure_retention(problem: Problem) -> None:
    """Law 6: lr 0 and empty slots leave retention alone; decay 1 as well leaves the state unchanged."""
    spec = problem.spec
    names = [n for n in problem.gates if n in ("lr", "gamma")]
    gates = problem.gates | {n: torch.zeros_like(problem.gates[n]) for n in names}
    if "log_decay" in gates:
        gates = gates | {"log_decay": torch.zeros_like(gates["log_decay"])}
    if "threshold" in gates:
        gates = gates | {"threshold": torch.zeros_like(gates["threshold"])}
    extra = {
        n: torch.zeros_like(x) if n.startswith("replay.") and n[7:] not in ("k", "v") else x
        for n, x in problem.state.extra.items()
    }
    state = problem.state._replace(slots={n: torch.zeros_like(x) for n, x in problem.state.slots.items()}, extra=extra)
    _, after = replace(problem, gates=gates, state=state).run()
    link_before = _weights(spec, state)
    link_after = _weights(spec, after)
    close(
        {n: relative(link_after[n], w) for n, w in link_before.items()}, 1e-9, "weights after tokens that teach nothing"
    )


def chunk_size_cannot_matter(problem: Problem) -> None:
    """Law 7: with a linear memory and a constant residual every chunk size is the token recurrence."""
    spec = problem.spec
    if not free_of_chunks(spec) or not spec.algorithm.direction_is_identity or spec.step_bound is not None:
        raise Inapplicable("the gradient depends on the anchor")
    wanted = replace(problem, spec=replace(spec, chunk_size=1, anchor_lag=0)).run()
    got = problem.run()
    close({"y": relative(got[0], wanted[0])}, split_tolerance(spec), "chunk size")


def a_small_step_lowers_the_loss(problem: Problem) -> None:
    """Law 8: monotone link, empty slots, no decay, true gradient: the answer to the written key comes closer."""
    spec = problem.spec
    if not (spec.bias.residual_is_gradient and spec.retention.link_is_monotone):
        raise Inapplicable("no true gradient or no monotone link")
    if spec.algorithm.linear_only or spec.algorithm.changes_error or spec.algorithm.window > 1 or problem.k.dim() == 5:
        raise Inapplicable(f"algorithm {spec.algorithm.name!r} does not step along the gradient of one pair")
    if not spec.algorithm.direction_is_identity or spec.algorithm.settles or spec.retention.gradient_at == "decayed":
        raise Inapplicable("the direction is not the gradient's")
    first = replace(
        problem.slice(0, 1),
        state=problem.state._replace(slots={n: torch.zeros_like(x) for n, x in problem.state.slots.items()}),
    )
    gates = first.gates | {"lr": torch.full_like(first.gates["lr"], 1e-6)}
    for quiet in ("log_decay", "threshold"):
        if quiet in gates:
            gates[quiet] = torch.zeros_like(gates[quiet])
    one = replace(spec, read="after", chunk_size=1, anchor_lag=0)  # the state after it is at a boundary, committed
    first = replace(first, gates=gates, q=first.k, spec=one)
    memory = AssociativeMemory(first.spec)
    _, state = first.run()
    before, after = (
        memory.surprise(first.k, first.k, first.v, gates, s._replace(phase=(0,) * s.batch))
        for s in (first.state, state)
    )
    scale = before.abs().clamp_min(1e-3)
    assert ((after - before) / scale <= 1e-9).all(), f"the loss rose from {before} to {after}"


def a_full_step_stores_the_pair(problem: Problem) -> None:
    """Law 9: matrix, half l2, gradient descent at chunk 1, no retention, lr 1, unit key: the read returns the value."""
    spec = problem.spec
    if not (spec.architecture.name == "matrix" and spec.bias.name == "l2" and spec.algorithm.name == "gd"):
        raise Inapplicable("not the delta rule")
    if (
        spec.retention.name != "none"
        or spec.chunk_size != 1
        or spec.read != "after"
        or spec.step_bound is not None
        or problem.k.dim() == 5
    ):
        raise Inapplicable("not the plain delta rule")
    if spec.bias.curvature != 1.0:
        raise Inapplicable("the loss has no factor one half")
    gates = problem.gates | {"lr": torch.ones_like(problem.gates["lr"])}
    y, _ = replace(problem, q=problem.k, gates=gates).run()
    close({"y": relative(y, problem.v)}, 1e-12, "the value just written")


def everything_round_trips(problem: Problem) -> None:
    """Law 10: spec and state through JSON, pickle and flat tensors."""
    spec = problem.spec
    if spec.architecture.name != "from_module" and all(getattr(spec, a).name in r for a, r in AXES.items()):
        assert MirasSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec, "JSON"
        assert pickle.loads(pickle.dumps(spec)) == spec, "pickle"
        assert eval(repr(spec), {"MirasSpec": MirasSpec}) == spec, f"pasting {spec!r}"
    _, state = problem.run()
    for other in (MemoryState.from_tensors(state.tensors()), pickle.loads(pickle.dumps(state.detach())), state.fork()):
        compare((problem.q, other), (problem.q, state), 0.0, "state round trip")


def finite(problem: Problem) -> None:
    """Law 11: finite outputs, states and gradients."""
    leafy, leaves = problem.leaves()
    y, state = leafy.run()
    differentiable = [x for x in tensors(y, state).values() if x.requires_grad]
    gradients = torch.autograd.grad(probe(differentiable), list(leaves.values()), allow_unused=True)
    for name, x in [
        *tensors(y, state).items(),
        *((f"gradient of {n}", g) for n, g in zip(leaves, gradients, strict=True) if g is not None),
    ]:
        assert torch.isfinite(x).all(), f"{name} is not finite"


def constraints_hold(problem: Problem) -> None:
    """Law 13: a simplex stays a simplex, a sphere a sphere, a box a box."""
    retention = problem.spec.retention
    _, state = problem.run()
    for n, w in _weights(problem.spec, state).items():
        dims = len(problem.state.memory[n].shape) - 2
        match retention.name:
            case "kl" | "f_divergence":
                axis = {"in": -2 if dims > 1 else -1, "out": -1, "all": tuple(range(-dims, 0))}[retention.axis]  # type: ignore[attr-defined]
                total, before = w.sum(axis), _weights(problem.spec, problem.state)[n].sum(axis)
                assert (w >= 0).all(), f"{n} left the simplex"
                close({n: relative(total, before)}, 1e-9, "mass of the simplex")
            case "logistic":
                assert ((w >= 0) & (w <= 1)).all(), f"{n} left the box"
            case "tanh":
                assert (w.abs() <= 1).all(), f"{n} left the box"
            case _:
                raise Inapplicable("no constraint")


def residual_is_the_gradient(problem: Problem) -> None:
    """Law 3: where claimed, the residual is the derivative of the loss; the affine, constant and proximal claims hold."""
    bias = problem.spec.bias
    p, v = problem.q, problem.v.flatten(2, 3)[:, :, : problem.q.shape[2]] if problem.v.dim() == 5 else problem.v
    width = min(p.shape[-1], v.shape[-1])
    p, v = 2 * p[..., :width], v[..., :width]
    gates = {g: torch.full_like(p[..., :1], 0.7) for g in bias.gates}
    residual = bias.residual(p, v, **gates)
    if bias.residual_is_gradient:
        leaf = p.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(bias.loss(leaf, v, **gates).sum(), leaf)
        close({"residual": relative(residual, gradient)}, 1e-9, f"residual of {bias.name}")
    if bias.residual_is_affine:
        slope, offset = bias.affine(v, **gates)
        close({"affine": relative(slope * p + offset, residual)}, 1e-12, f"affine form of {bias.name}")
    if bias.residual_is_constant:
        close(
            {"constant": relative(bias.residual(p + 1, v, **gates), residual)},
            1e-12,
            f"constant residual of {bias.name}",
        )


def _weights(spec: MirasSpec, state: MemoryState) -> dict[str, Tensor]:
    """The weights a query would read at the state's end."""
    from miras.engine.weights import read_weights

    dims = {n: x.shape[2:] for n, x in state.memory.items()}
    d_key, d_value = _widths(spec, dims)
    return read_weights(spec, AssociativeMemory(spec).shapes(d_key, d_value), state)


def _widths(spec: MirasSpec, dims: dict[str, torch.Size]) -> tuple[int, int]:
    for d_key in range(1, 65):
        for d_value in range(1, 65):
            try:
                shapes = spec.architecture.shapes(d_key, d_value)
            except ValueError:
                continue
            if all(tuple(shapes[n].shape) == tuple(s) for n, s in dims.items()):
                return d_key, d_value
    raise AssertionError(f"no widths give the shapes {dims}")

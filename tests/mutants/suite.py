"""The kill suite: laws on a fixed list of small problems, and what the engine's helpers say of themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.engine import factored, filters, picard, plan, problem, products, run, weights
from miras.engine.plan import Path
from miras.engine.weights import Decayed, PerToken, Plain
from miras.inputs import inputs
from miras.kernels import Dims, Kernel
from miras.testing import TOLERANCE, apply, relative
from miras.testing.laws import (
    close,
    compare,
    masked_is_deleted,
    packed_is_separate,
    probe,
    rows_and_heads_are_independent,
    tensors,
)
from tests.mutants import recurrence
from tests.mutants.cases import LATE, WIDE, Case, cases, make

Check = Callable[[], None]
LETTERS: dict[Path, str] = {"exact": "E", "fused": "U", "factored": "F", "materialised": "M", "picard": "P"}


def claims(case: Case) -> None:
    """No path gives up a spec it can compute, and all agree."""
    p, found = case.problem(), ""
    wanted = p.run("reference")
    for path, letter in LETTERS.items():
        with contextlib.suppress(ValueError):
            compare(p.run(path, 1e-11 if path == "picard" else None), wanted, TOLERANCE[path][torch.float64], path)
            found += letter
    assert sorted(found) == sorted(case.claims), f"the paths {found} claim it, not {case.claims}"


def literal(case: Case) -> None:
    """The engine is the recurrence of `tests.mutants.recurrence`, in surprises and later reads too."""
    p = case.problem()
    wanted = recurrence.run(p)
    y, state = p.run()
    memory = AssociativeMemory(p.spec)
    got = tensors(y, state) | {"surprise": memory.surprise(p.q, p.k, p.v, p.gates, p.state)}
    if "again" in wanted:
        got["again"] = memory.read(state, p.q[:, -1:], p.v.shape[-1])[:, 0]
    close({n: relative(got[n], x) for n, x in wanted.items()}, 1e-8, "literal recurrence")


def uneven(case: Case) -> None:
    """Rows in different phases, of which one has seen nothing."""
    p = case.problem()
    mask = torch.ones(p.q.shape[:2], dtype=torch.bool)
    mask[0, 1:] = False
    mask[1] = False
    _, state = replace(p, mask=mask).run()
    rows_and_heads_are_independent(replace(p, state=state))


def small_tiles(case: Case) -> None:
    """The paths again with tiles of three tokens and blocks of two, so that short sequences cross many."""
    with patch.object(plan, "TILE", 3), patch.object(filters, "BLOCK", 2):
        apply("every path is the reference", case.problem(), 0)


def derivatives(case: Case) -> None:
    """Second derivatives on every path that has them, and first ones under ``torch.func``."""
    p, found = case.problem(), dict[str, dict[int, Tensor | None]]()
    able: list[Path] = [path for path, letter in LETTERS.items() if letter in case.claims and letter != "P"]
    for path in able:
        leafy, leaves = p.leaves()
        y, state = leafy.run(path)
        inputs = [x for n, x in leaves.items() if not n.startswith("state/anchor") and "inverse" not in n]
        outputs = probe(x for x in tensors(y, state).values() if x.requires_grad)
        first = torch.autograd.grad(outputs.sin(), inputs, create_graph=True, allow_unused=True)
        first = [x for x in first if x is not None and x.requires_grad]
        second = torch.autograd.grad(probe(first), inputs, allow_unused=True)
        found[path] = dict(enumerate(second))

        def answer(q: Tensor, path: Path = path) -> Tensor:
            return replace(p, q=q).run(path)[0].sin().sum()

        one = torch.func.grad(answer)(p.q)
        (two,) = torch.autograd.grad(leafy.run(path)[0].sin().sum(), leafy.q)
        close({"q": relative(one, two)}, 1e-10, f"torch.func on path {path}")
    wanted = found.pop("materialised")
    for path, got in found.items():
        close({str(i): relative(got[i], wanted[i]) for i in wanted}, 1e-7, f"second derivatives on path {path}")


def adjoint(case: Case) -> None:
    """Every view of a matrix and its transpose agree: ``<x W, d> = <x, d W^T>``."""
    p = case.problem()
    memory = AssociativeMemory(p.spec)
    shapes = memory.shapes(p.q.shape[-1], p.v.shape[-1])
    made = []

    def spy(self: Any, *arguments: Any, kept: Any = factored.Factored.__init__, **options: Any) -> None:
        kept(self, *arguments, **options)
        made.append(self)

    with patch.object(factored.Factored, "__init__", spy):
        p.run("factored")
    view, g = made[-1], torch.Generator().manual_seed(0)
    tokens = (*p.q.transpose(1, 2).shape[:2], view.seg.x.length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    for n, weight in shapes.items():
        if weight.kind != "dense":
            continue
        each = {n: draw(*tokens, *weight.shape)}
        decays = [{n: draw(*tokens, *s)} for s in ((weight.shape[0], 1), (1, weight.shape[1]), (1, 1))]
        x, d = draw(*tokens, weight.shape[0]), draw(*tokens, weight.shape[1])
        views = [view, PerToken(each), Plain(p.state.memory), *(Decayed(p.state.memory, e) for e in decays)]
        for one in views:
            pair = (one.dense(n, x) * d).sum(-1), (x * one.dense_t(n, d)).sum(-1)
            close({n: relative(*pair)}, 1e-12, f"adjoint of {type(one).__name__}")


def empty(case: Case) -> None:
    """No tokens change nothing; no state is a state of zeros."""
    p = case.problem()
    y, state = p.slice(0, 0).run()
    assert y.shape == (*p.v.shape[:1], 0, *p.v.shape[2:]), "outputs of no tokens"
    compare((y, state), (y, p.state), 0.0, "no tokens")
    memory = AssociativeMemory(p.spec)
    zero = memory.initial_state({n: torch.zeros_like(w[0]) for n, w in p.state.memory.items()}, 2, 3, 5)
    assert all(not x.any() for n, x in zero.tensors().items() if n != "extra/P"), "a fresh state is zero"
    wanted = replace(p, state=zero).run()
    compare(memory(p.q, p.k, p.v, p.gates), wanted, 0.0, "no state")


def ragged_rows() -> None:
    """Rows whose groups are not in their order, and one that is empty."""
    p = make("", {"batch": 4, "length": 3}, algorithm="momentum", chunk_size=2).problem()
    keep = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    masked_is_deleted(p, keep)
    packed_is_separate(p, [0, 1, 1, 2, 3])


def limited_gradients() -> None:
    """A gradient through a boundary is clipped where, and only where, a nonlinear memory is bounded."""
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    (got,) = torch.autograd.grad((weights.limited(x) * torch.tensor([1e10, -1e10, 2.0])).sum(), x)
    assert got.tolist() == [1e8, -1e8, 2.0] and torch.equal(torch.vmap(weights.limited)(x), x), "the limit"
    for architecture, bound, passes in (("low_rank", 1.0, False), ("low_rank", None, True), ("matrix", 1.0, True)):
        p, leaves = make("", {}, architecture=architecture, algorithm="momentum", step_bound=bound).problem().leaves()
        with patch.object(weights, "LIMIT", 0.0):
            y, _ = p.run("materialised")
            past = [x for n, x in leaves.items() if n.startswith(("state/memory", "state/slots"))]
            gradients = torch.autograd.grad(y.sum(), past)
        assert all(bool(g.any()) == passes for g in gradients), f"{architecture} with step_bound {bound}"


def products_differentiate(slots: int, width: int) -> None:
    """The two products against what they say, with first and second derivatives, also under vmap."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=g, dtype=torch.float64, requires_grad=True)

    g = torch.Generator().manual_seed(slots)
    x, start, keys, errors = draw(3, 3), draw(3, width), draw(4, 3), draw(4, width)
    of = (draw(slots, 3, width), draw(3, slots)) if slots else (None, None)
    carry, pairs, mix, into = draw(3), draw(3, 4), draw(1 + slots, 1 + slots), draw(1 + slots, 4)

    def read(
        x: Tensor,
        start: Tensor,
        held: Tensor | None,
        carry: Tensor,
        of_slots: Tensor | None,
        pairs: Tensor,
        keys: Tensor,
        errors: Tensor,
    ) -> Tensor:
        y = carry[..., None] * (x @ start) - (pairs * (x @ keys.mT)) @ errors
        return y if held is None else y - torch.einsum("bni,bkio,bnk->bno", x, held, of_slots)

    def write(start: Tensor, held: Tensor | None, mix: Tensor, keys: Tensor, errors: Tensor, into: Tensor) -> Tensor:
        stack = start[:, None] if held is None else torch.cat([start[:, None], held], 1)
        return torch.einsum("bij,bjkl->bikl", mix, stack) + torch.einsum("bip,bpk,bpl->bikl", into, keys, errors)

    def written(*t: Tensor | None) -> Tensor:
        memory, rest = products.write(*t)  # type: ignore[arg-type]
        return memory[:, None] if rest is None else torch.cat([memory[:, None], rest], 1)

    both: list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor | None, ...]]] = [
        (products.read, read, (x, start, of[0], carry, of[1], pairs, keys, errors)),
        (written, write, (start, of[0], mix, keys, errors, into)),
    ]
    for fast, slow, t in both:
        found = {"value": (fast(*t), slow(*t))}
        leaves = [x for x in t if x is not None]
        first = [torch.autograd.grad(f(*t).sin().sum(), leaves, create_graph=True) for f in (fast, slow)]
        second = [torch.autograd.grad(sum(x.sin().sum() for x in d), leaves) for d in first]  # type: ignore[arg-type]
        for name, (a, b) in {"first": first, "second": second}.items():
            found |= {f"{name}/{i}": pair for i, pair in enumerate(zip(a, b, strict=True))}
        close({n: relative(a, b) for n, (a, b) in found.items()}, 1e-12, "product")
    plain = x, start, None, carry, None, pairs, keys, errors
    one = torch.vmap(products.read, in_dims=tuple(None if t is None else 0 for t in plain))(*plain)
    close({"vmap": relative(one, read(*plain))}, 1e-12, "product")


def sweeps_end(tolerance: float, most: int, coupling: float, size: float) -> None:
    """A causal map of five tokens ends after five sweeps, and sooner when told to; gradients are the closed form's."""
    eye, g = torch.eye(5, dtype=torch.float64), torch.Generator().manual_seed(0)
    lower = coupling * torch.tril(torch.randn(5, 5, generator=g, dtype=torch.float64), -1)
    b = (size * torch.arange(1.0, 6.0, dtype=torch.float64)).requires_grad_()

    def sweep(flat: list[Tensor]) -> list[Tensor]:
        return [b + lower @ flat[0]]

    used: list[int] = []
    (z,) = picard.solve(sweep, [torch.zeros_like(b)], 5, tolerance, used)
    assert used == [most], f"{used} sweeps, not {most}"
    wanted = torch.linalg.solve(eye - lower, b)
    with torch.no_grad():
        (plain,) = picard.solve(sweep, [torch.zeros_like(b)], 5, 0.0)
    (got,), (true,) = (torch.autograd.grad(y.square().sum(), b, retain_graph=True) for y in (z, wanted))
    errors = {"z": relative(z, wanted), "gradient": relative(got, true), "without": relative(plain, wanted)}
    close(errors, max(100 * tolerance, 1e-12), "fixed point")


def kernels_are_asked(whole: bool) -> None:
    """A kernel gets what it says it takes, in the dtype of the inputs, where it may be trusted; the rest goes around it."""
    p = make("", WIDE | {"length": 8}, 1, algorithm="momentum", chunk_size=3).problem()
    memory, asked = AssociativeMemory(p.spec), list[tuple[str, int]]()
    shapes, dims = memory.shapes(3, 5), Dims(3, 5)
    around = plan.plan(p.spec, shapes)

    def told(name: str) -> Any:
        def kernel(spec: Any, shapes: Any, state: Any, x: Any) -> Any:
            asked.append((name, x.length))
            y, after = run.run(spec, shapes, around, state, x.to(torch.float64))
            return y.to(x.v.dtype), after

        return kernel

    stub = Kernel("stub", lambda *_: None, lambda *_: None, told("run"), told("one"), whole_chunks=whole)
    planned = replace(around, path="kernel", kernel=stub)

    def use(part: Any, right: bool = True, narrow: bool = False) -> list[tuple[str, int]]:
        """What the kernel is asked for, and that the answer is that of the path around it."""
        x = inputs(p.spec, part.q, part.k, part.v, part.gates, torch.float64)
        x = x._replace(q=x.q.float(), k=x.k.float(), v=x.v.float()) if narrow else x
        asked.clear()
        known = stub, p.spec, dims, x.q.device, x.q.dtype
        with patch.object(run, "trusted", lambda *a: stub if a == known and right else None):
            y, after = run.run(p.spec, shapes, planned, part.state, x)
        assert y.dtype == x.v.dtype
        compare((y.transpose(1, 2), after), part.run(), 1e-5 if narrow else 0.0, "a kernel")
        return list(asked)

    assert use(p) == [("run", 6 if whole else 8)], "two tokens end a chunk, two chunks are whole"
    assert use(p, narrow=True) == [("run", 6 if whole else 8)], "and in float32"
    assert not use(p, right=False), "a kernel that is wrong here"
    assert use(p.slice(0, 1)) == ([] if whole else [("run", 1)]), "gradients may be wanted"
    with torch.no_grad():
        assert use(p.slice(0, 1)) == [("one", 1)], "one token"
        assert use(p.slice(0, 2)) == ([] if whole else [("run", 2)]), "two tokens"
    with patch.object(run, "trusted", lambda *_: stub):
        go = partial(run.run, p.spec, shapes, planned, p.state)
        asked.clear()
        torch.func.grad(lambda q: go(inputs(p.spec, q, p.k, p.v, p.gates, torch.float64))[0].sum())(p.q)
        assert not asked, "a kernel has no transforms"


def plans() -> None:
    """What a plan says of a spec beside the path."""
    p = make("", {}).problem()
    shapes = AssociativeMemory(p.spec).shapes(4, 4)
    made = plan.plan(p.spec, shapes)
    assert (made.path, made.around, made.tolerance, made.kernel) == ("exact", "exact", 0.0, None)
    assert plan.plan(p.spec, shapes, path="factored").around == "exact", "the fastest of PyTorch"
    assert plan.plan(p.spec, shapes, pairs=2).path == "factored", "one pair a token unless told"
    assert plan.plan(p.spec, shapes, path="picard", tolerance=0.5).tolerance == 0.5
    perceptron: dict[str, Any] = {"architecture": "mlp", "chunk_size": 3}
    never: Any = None
    stub = Kernel("stub", never, never, never, never)
    for case, around, tile in ((make("", {}), "exact", plan.TILE), (make("", {}, **perceptron), "fused", 3)):
        shapes = AssociativeMemory(case.spec).shapes(4, 4)
        with patch.object(plan, "choose", lambda *_: stub):
            made = plan.plan(case.spec, shapes, dims=Dims(4, 4))
        assert (made.path, made.around, made.tile, made.kernel) == ("kernel", around, tile, stub)
        assert plan.plan(case.spec, shapes).tile == tile
        with patch.object(plan, "choose", lambda *_: stub):
            forced = plan.plan(case.spec, shapes, path="factored", dims=Dims(4, 4))
        assert forced.kernel is None and all(forced.refused.values()), "reasons, and no kernel on another path"
    frozen = {"name": "lq", "link_at": "chunk"}
    others: tuple[dict[str, Any], ...] = (
        {"retention": frozen},
        {"read": "previous"},
        {"anchor_lag": 1},
        {"retention": LATE},
    )
    for spec in others:
        case = make("", {}, **perceptron | spec)
        reasons = plan.plan(case.spec, AssociativeMemory(case.spec).shapes(4, 4)).refused
        assert reasons.get("fused"), f"the fused path computes a plain perceptron only, not {spec}"
    for algorithm in ("mini_batch", "chunk_step", "implicit", "newton", {"name": "omega", "size": 2}):
        linear = algorithm in ("implicit", "newton")
        for chunk, asked in ((1, plan.picard), (3, plan.fused))[: 1 if linear else 2]:
            case = make("", {}, architecture="matrix" if linear else "mlp", algorithm=algorithm, chunk_size=chunk)
            reason = asked(case.spec, AssociativeMemory(case.spec).shapes(4, 4), 1)
            assert "one gradient a token" in str(reason), f"{asked} of {algorithm}: {reason}"


def unmoved() -> None:
    """A pair that moves nothing has the gradient zero, and windows of one remember no pairs."""
    p, leaves = make("", {}, architecture="mlp", algorithm="momentum", step_bound=1.0).problem().leaves()
    assert not any(name.startswith("replay") for name in p.state.extra), "nothing is replayed"
    still = replace(p, k=0 * p.k, v=0 * p.v)
    y, _ = still.run("reference")
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), [leaves["q"], leaves["gate.lr"]])), "finite"


def narrow_energy() -> None:
    """Squared norms of narrow numbers are summed in the wide dtype."""
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    wanted = (x.double() ** 2).sum(-1)
    for given in (x, x.double()):
        close({"squares": relative(problem.energy(given, torch.float64), wanted)}, 1e-15, "energy")


def law(name: str, cut: int, case: Case) -> None:
    """A shipped law."""
    apply(name, case.problem(), cut)


def checks() -> dict[str, Check]:
    """All checks by name."""
    found: dict[str, Check] = {}
    for i, case in enumerate(cases()):
        short = f"{i}: {case.name}"
        found[f"claims {short}"] = partial(claims, case)
        found[f"literal {short}"] = partial(literal, case)
        laws = ["every path is the reference", "splits anywhere"]
        solves = (
            case.spec.algorithm.reads_through_query
        )  # conjugate gradients past convergence have no second derivative
        if (i % 5 == 0 and not solves) or "U" in case.claims:
            found[f"derivatives {short}"] = partial(derivatives, case)
        if "F" in case.claims and case.spec.retention.link_is_identity and case.spec.read != "anchor":
            found[f"adjoint {short}"] = partial(adjoint, case)
        if case.sizes["length"] < 12 and case.spec.architecture.name != "from_module":
            laws += [["masked is deleted", "packed is separate", "causal"][i % 3]]
            if i % 4 == 0:
                found[f"uneven {short}"] = partial(uneven, case)
            elif i % 4 == 2 and not case.warm:
                laws += ["nothing learned is pure retention"]
            if case.spec.chunk_size == 1 or case.spec.bias.name == "dot" or "per" in case.name:
                found[f"small tiles {short}"] = partial(small_tiles, case)
        found |= {f"{name} {short}": partial(law, name, i + 2, case) for name in laws}
    sweeps = [(1.0, 1, 0.0, 1.0), (0.0, 5, 1.0, 1.0), (1e-7, 4, 1e-3, 1e6), (0.0, 2, 0.0, 1.0), (0.0, 1, 0.0, 0.0)]
    found |= {f"sweeps {numbers}": partial(sweeps_end, *numbers) for numbers in sweeps}
    found |= {f"products {i} {d}": partial(products_differentiate, i, d) for i in (0, 2) for d in (2, 3, 5)}
    found |= {f"empty {a}": partial(empty, make("", WIDE, algorithm=a)) for a in ("momentum", "omega", "newton")}
    found |= {f"kernels {whole}": partial(kernels_are_asked, whole) for whole in (False, True)}
    alone = {"ragged rows": ragged_rows, "limited gradients": limited_gradients, "unmoved": unmoved}
    return found | alone | {"plans": plans, "narrow energy": narrow_energy}

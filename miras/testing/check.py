"""All laws for one component: what `miras check` and a third party's test call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miras.spec import AXES
from miras.testing import laws
from miras.testing.problems import Problem
from miras.testing.strategies import problems, specs

LAWS: dict[str, Callable[..., None]] = {
    "every path is the reference": laws.every_path_is_the_reference,
    "splits anywhere": lambda p, cut: laws.splits_anywhere(p, cut),
    "masked is deleted": lambda p, cut: laws.masked_is_deleted(p, _mask(p, cut)),
    "packed is separate": lambda p, cut: laws.packed_is_separate(p, [0, cut, p.length]),
    "residual is the gradient": laws.residual_is_the_gradient,
    "causal": lambda p, cut: laws.causal(p, cut),
    "rows and heads are independent": laws.rows_and_heads_are_independent,
    "nothing learned is pure retention": laws.nothing_learned_is_pure_retention,
    "chunk size cannot matter": laws.chunk_size_cannot_matter,
    "a small step lowers the loss": laws.a_small_step_lowers_the_loss,
    "a full step stores the pair": laws.a_full_step_stores_the_pair,
    "everything round-trips": laws.everything_round_trips,
    "finite": laws.finite,
    "constraints hold": laws.constraints_hold,
}
"""Every law by name; those that take a place to cut the sequence get one inside it."""

QUIET: tuple[HealthCheck, ...] = tuple(HealthCheck)  # type: ignore[arg-type] # the product of axes is slow to draw

HUGE = 1e100
"""Beyond which squares overflow soon."""

TRIES = 20
"""Problems of which one has to depend on a gate."""

CUTTING = frozenset({"splits anywhere", "masked is deleted", "packed is separate", "causal"})


@dataclass(frozen=True)
class Result:
    """What one law said."""

    law: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What all laws said about a component."""

    component: Any
    results: list[Result]

    @property
    def ok(self) -> bool:
        """Whether no law failed."""
        return all(r.status != "failed" for r in self.results)

    def __str__(self) -> str:
        return "\n".join(
            [repr(self.component), *(f"  {r.status:<8}{r.law}  {r.detail}".rstrip() for r in self.results)]
        )


def check(component: Any, *, examples: int = 20) -> Report:
    """Holds a component to every law, in combination with everything on the other axes.

    Args:
        component: an instance of `Architecture`, `AttentionalBias`, `Retention` or `Algorithm`; it need not be registered.
        examples: random problems a law.

    Raises:
        TypeError: if it belongs to no axis.
    """
    axis = next((a for a, r in AXES.items() if isinstance(component, r.base)), None)
    if axis is None:
        raise TypeError(
            f"{component!r} is no component: derive from {', '.join(r.base.__name__ for r in AXES.values())}"
        )
    drawn = problems(specs(**{axis: component}))
    results = [_judge(name, drawn, examples) for name in LAWS]
    return Report(
        component,
        [*results, *([every_gate_is_read(component.gates, drawn)] if getattr(component, "gates", {}) else [])],
    )


def every_gate_is_read(gates: Iterable[str], drawn: st.SearchStrategy[Problem]) -> Result:
    """Whether every gate that the component declares changes anything, in one of some problems: a threshold need not in each."""
    left = set(gates)

    @settings(max_examples=TRIES, deadline=None, database=None, derandomize=True, suppress_health_check=QUIET)
    @given(drawn)
    def look(p: Problem) -> None:
        if left:
            left.difference_update(gates_read(p))

    try:
        look()
    except Exception as error:  # as of a law
        return Result("every gate is read", "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    detail = f"nothing depends on {', '.join(sorted(left))}: has the engine such a gate?" if left else ""
    return Result("every gate is read", "failed" if left else "passed", detail)


def _judge(name: str, drawn: st.SearchStrategy[Problem], examples: int) -> Result:
    tried = 0

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=QUIET)
    @given(drawn, st.integers(0, 2**16))
    def law(p: Problem, cut: int) -> None:
        nonlocal tried
        with contextlib.suppress(laws.Inapplicable):
            apply(name, p, cut)
            tried += 1

    try:
        law()
    except Exception as error:  # a component under test may fail in any way; the report says how
        return Result(name, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    return Result(name, "passed" if tried else "skipped", f"{tried} problems" if tried else "no problem it applies to")


def apply(name: str, problem: Problem, cut: int) -> None:
    """One law on one problem; ``cut`` is any number, from which a place in the sequence is taken."""
    try:
        if name not in CUTTING:
            LAWS[name](problem)
        elif problem.length > 1:
            LAWS[name](problem, 1 + cut % (problem.length - 1))
    except AssertionError as error:
        if diverges(problem):
            raise laws.Inapplicable("its steps are not bounded, and it diverges") from error
        raise


def _mask(p: Problem, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*p.q.shape[:2], generator=g) < 0.6


def diverges(problem: Problem) -> bool:
    """Whether numbers grow until laws cannot tell them apart, which nothing prevents where steps are not bounded."""
    if problem.spec.step_bound is not None:
        return False
    with torch.no_grad():
        y, state = problem.run("reference")
    return not all(x.abs().max() < HUGE for x in laws.tensors(y, state).values() if x.numel())


def gates_read(problem: Problem) -> set[str]:
    """Gates on which outputs or the final state depend."""
    _, gradients = laws.with_gradients(problem, None, None)
    return {
        n.removeprefix("gate.") for n, d in gradients.items() if n.startswith("gate.") and d is not None and d.any()
    }

"""The signature of this library: every law over the whole product of the four registries."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miras.gates import Gate
from miras.retentions import Retention
from miras.spec import AXES
from miras.testing import LAWS, Inapplicable, apply, check, components, problems, relative, specs
from miras.testing.check import QUIET, every_gate_is_read

FOCUS = {
    "chunk size cannot matter": specs(
        architecture=components("architecture", ("matrix", "feature_map", "slots")),
        bias="dot",
        retention=components("retention", ("none", "l2")),
        algorithm=components("algorithm", ("gd", "momentum", "nesterov", "qhm", "aggmo", "fir", "omega", "newton")),
        read=st.sampled_from(["after", "previous"]),
        step_bound=None,
    ),
    "a full step stores the pair": specs(
        architecture="matrix", bias="l2", retention="none", algorithm="gd", chunk_size=1, read="after", step_bound=None
    ),
    "constraints hold": specs(retention=components("retention", ("kl", "f_divergence", "logistic", "tanh"))),
}
"""Laws that speak of few specs draw from those."""


@pytest.mark.parametrize("law", LAWS)
@settings(suppress_health_check=QUIET, deadline=None)
@given(data=st.data(), cut=st.integers(0, 2**16))
def test_law(law: str, data: st.DataObject, cut: int) -> None:
    problem = data.draw(problems(FOCUS.get(law)))
    with contextlib.suppress(Inapplicable):
        apply(law, problem, cut)


GATED = [
    (axis, name)
    for axis, registry in AXES.items()
    for name in registry
    if all(f.default is not dataclasses.MISSING or not f.init for f in dataclasses.fields(registry[name]))
    and getattr(registry[name](), "gates", {})
]
"""Components that declare gates, as they are by default."""


@pytest.mark.parametrize(("axis", "name"), GATED)
def test_every_gate_is_read(axis: str, name: str) -> None:
    component = AXES[axis][name]()
    found = every_gate_is_read(component.gates, problems(specs(**{axis: component})))
    assert found.status == "passed", found.detail


@dataclass(frozen=True)
class Misnamed(Retention):
    """Its decay has a name that the engine does not know."""

    @property
    def gates(self) -> dict[str, Gate]:
        return {"decay": Gate("sigmoid", init=0.99)}


def test_a_gate_that_nothing_reads_is_found() -> None:
    [found] = [r for r in check(Misnamed(), examples=1).results if r.status == "failed"]
    assert found.law == "every gate is read" and "nothing depends on decay" in found.detail


def test_errors_of_what_overflows() -> None:
    x = torch.randn(5, dtype=torch.float64)
    for scale in (1.0, 1e200):
        assert relative(scale * x * (1 + 1e-6), scale * x) == pytest.approx(1e-6)
    assert math.isnan(relative(x * torch.nan, 1e200 * x))

"""The signature of this library: every law over the whole product of the four registries."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miras.testing import LAWS, Inapplicable, apply, components, problems, specs
from miras.testing.check import QUIET

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

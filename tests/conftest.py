"""What every test shares: hypothesis profiles, seeds, and which tests this machine runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():  # kernels run in Triton's interpreter, which has to know before anyone imports it
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore = ["plugin"]  # a package of its own, with doctests that would register it here

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")

settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=30, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=500, deadline=None)
settings.load_profile(PROFILE)

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers already use every core
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, which are to round as this one does


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="random problems of every test that needs a GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds: Any = metafunc.config.getoption("seeds")
    if seeds > 1 and metafunc.definition.get_closest_marker("gpu"):
        metafunc.parametrize("seed", range(seeds), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs an accelerator"
    if PROFILE != "nightly":
        reasons["nightly"] = "needs HYPOTHESIS_PROFILE=nightly"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of PyTorch, and of random problems that name none."""
    from miras.testing.problems import problem  # which may import Triton

    number = getattr(request, "param", 0)
    torch.manual_seed(number)
    monkeypatch.setattr(problem, "__kwdefaults__", (problem.__kwdefaults__ or {}) | {"seed": number})
    return number


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels are given to write to holds NaN, so that a test fails if anything is read before."""
    if not request.node.path.name.startswith("test_kernels"):
        return

    def filled(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def created(*args: Any, **kwargs: Any) -> torch.Tensor:
            new = create(*args, **kwargs)
            return new.fill_(torch.nan) if new.is_floating_point() and not torch.compiler.is_compiling() else new

        return created

    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))

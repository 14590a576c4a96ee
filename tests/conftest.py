"""What every test shares: hypothesis profiles, seeds, and which tests this machine runs."""

from __future__ import annotations

import os

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
def seed() -> None:
    torch.manual_seed(0)

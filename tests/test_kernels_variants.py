"""Variants that `benchmarks.variants` compares, of what a call launches."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import variants_matrix
from miras.kernels._matrix import launches
from tests.kernels import DEVICE, DTYPE, cast, results
from tests.test_kernels_matrix import drawn


def test_variants_of_what_a_call_launches() -> None:
    """They are entered and left, one inside another, and only kernels that are launched have any."""
    p = cast(drawn("gated delta rule"), DTYPE, DEVICE)
    found = variants_matrix.found(lambda: results(p, "kernel"))
    before = launches.config
    with variants_matrix.both(found["every 8"], found["scan 32 4 3"], found["inverse 8 warps"])():
        size = launches.Tiles(1, 1, 64, 64, 1, 1, 64, 64, torch.bfloat16)
        assert launches.EVERY == 8 and launches.config(size, False, "scan") == (32, 4, 3)
        assert launches.INVERSE == {"num_warps": 8}
    assert launches.EVERY == 16 and launches.config is before and launches.INVERSE == {"num_warps": 4}
    assert "vectors 8 warps" in found and not [n for n in found if n.startswith(("products", "coefficients", "carry"))]

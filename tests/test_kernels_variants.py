"""Variants that `benchmarks.variants` compares, of what a call launches."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import variants_matrix
from miras.kernels import _launches
from tests.kernels import DEVICE, DTYPE, cast, results
from tests.test_kernels_matrix import drawn


def test_variants_of_what_a_call_launches() -> None:
    """They are entered and left, one inside another, and only kernels that are launched have any."""
    p = cast(drawn("gated delta rule"), DTYPE, DEVICE)
    found = variants_matrix.found(lambda: results(p, "kernel"))
    before = _launches.config
    with variants_matrix.both(found["every 8"], found["scan 32 4 3"], found["inverse 8 warps"])():
        size = _launches.Tiles(1, 1, 64, 64, 1, 1, 64, 64, torch.bfloat16)
        assert _launches.EVERY == 8 and _launches.config(size, False, "scan") == (32, 4, 3)
        assert _launches.INVERSE == {"num_warps": 8}
    assert _launches.EVERY == 16 and _launches.config is before and _launches.INVERSE == {"num_warps": 4}
    assert "vectors 8 warps" in found and not [n for n in found if n.startswith(("products", "coefficients", "carry"))]

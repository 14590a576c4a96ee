"""Kernels as they are compiled for Hopper, without a device: they fit, use tensor cores, and avoid what compilers break."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from miras.kernels import cuda

ROOT = Path(__file__).parents[1]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "module", ["sm90", "sm90_around", "sm90_channels", "sm90_coefficients", "sm90_mlp", "sm90_values"]
)
def test_compiled_for_hopper(module: str) -> None:
    """In a process of its own: the interpreter of other tests takes the compiler's place for good."""
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    sizes = "--tiles" if module == "sm90_coefficients" else "--dims"
    command = [sys.executable, "-m", f"benchmarks.{module}", sizes, "64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.skipif(cuda.compiler() is None, reason="there is no NVRTC")
def test_cuda_compiled_for_hopper() -> None:
    command = [sys.executable, "-m", "benchmarks.sm90_clusters"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr

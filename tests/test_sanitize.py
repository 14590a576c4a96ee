"""What sanitizers are shown."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.sanitize import FORMS, Form, call, layer, matrix
from miras import AssociativeMemory
from miras.kernels import KERNELS, Dims
from miras.kernels.table import Kernel
from tests import kernels


def able(form: Form, kernel: Kernel) -> bool:
    """Whether it computes that memory, wherever it can run."""
    spec, dims = form.spec, Dims(form.width, form.width)
    return kernel.supports(spec, AssociativeMemory(spec).shapes(*dims), spec.algorithm.steps) is None


@pytest.mark.parametrize("form", FORMS)
def test_some_kernel_computes_it(form: Form) -> None:
    where = torch.device(kernels.DEVICE), kernels.DTYPE
    memory = AssociativeMemory(form.spec, "kernel")
    assert memory.plan(form.width, form.width, form.spec.algorithm.steps, where).kernel in KERNELS


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_kernel_is_among_them(kernel: Kernel) -> None:
    assert any(able(form, kernel) for form in FORMS)


def test_a_call() -> None:
    where = torch.device(kernels.DEVICE), kernels.DTYPE
    assert call(Form(matrix(8, algorithm="gd"), 19, 16), *where) == "split matrix chunks"
    assert layer(*where) == "a layer"

"""Softmax attention as a layer of memory."""

from __future__ import annotations

from typing import Any

from miras import Memory, MirasSpec
from miras.nonparametric import KernelRegression


class SoftmaxAttention(Memory):
    """A `Memory` that keeps every pair: its state grows with the sequence."""

    def make_core(self, spec: MirasSpec, **how: Any) -> KernelRegression:
        return KernelRegression(spec, **how)

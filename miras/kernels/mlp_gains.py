"""Perceptrons of two matrices with a fast gain and shift behind their layer norm, with fast biases or without."""

from __future__ import annotations

from miras.architectures import MLP
from miras.engine.weights import Shapes
from miras.kernels import mlp, mlp_biases
from miras.kernels.table import Kernel, in_pytorch
from miras.spec import MirasSpec


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp_biases` computes without the gain, with or without the biases."""
    a = spec.architecture
    if not isinstance(a, MLP) or a.depth != 2 or not a.affine:
        return f"architecture {a.name!r} is not a perceptron of two matrices with a fast gain and shift"
    return mlp_biases.covered(spec, shapes, pairs)


KERNEL = Kernel("perceptron with a gain", supports, mlp.fits, mlp_biases.run, in_pytorch, proven=True)

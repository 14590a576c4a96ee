"""How close is equal: one table by path and dtype, never a number in a test."""

from __future__ import annotations

import torch

TOLERANCE: dict[str, dict[torch.dtype, float]] = {
    "reference": {torch.float64: 1e-12, torch.float32: 1e-4},
    "materialised": {torch.float64: 1e-9, torch.float32: 1e-3},
    "factored": {torch.float64: 1e-9, torch.float32: 1e-3},
    "fused": {torch.float64: 1e-9, torch.float32: 1e-3},
    "exact": {torch.float64: 1e-9, torch.float32: 1e-3},
    # float32 without tf32; the others round operands once a product, states stay float32
    "kernel": {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    # sweeps stop at a relative change of 1e-10, and the gradient solves as far
    "picard": {torch.float64: 1e-7, torch.float32: 1e-3},
}
"""Relative error of a path against the reference: outputs, states and gradients."""

SPLIT = 1e-12
"""Relative error of a sequence cut anywhere (float64). Newton-Schulz, conjugate gradients and Cholesky factors amplify
rounding by their condition, so specs with them get `LOOSE_SPLIT`."""

LOOSE_SPLIT = 1e-9


def relative(got: torch.Tensor | None, wanted: torch.Tensor | None, floor: float = 1e-3) -> float:
    """``|got - wanted| / max(|wanted|, floor)``; None counts as zero; NaN anywhere gives NaN.

    Numbers whose squares overflow, as those of a memory that diverges, are compared all the same.
    """
    if got is None and wanted is None:
        return 0.0
    reference = wanted if wanted is not None else got
    assert reference is not None
    zero = torch.zeros_like(reference)
    a, b = (zero if got is None else got), (zero if wanted is None else wanted)
    largest = b.abs().max() if b.numel() else b.new_zeros(())
    if largest > torch.finfo(b.dtype).max ** 0.4:
        a, b = a / largest, b / largest
    return ((a - b).norm() / b.norm().clamp_min(floor)).item()

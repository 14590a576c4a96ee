"""What rounding the operands of every product costs: the error that no kernel with narrow operands can undercut."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
ADDED = (ATEN.addmm.default, ATEN.baddbmm.default, ATEN.addmm_.default, ATEN.baddbmm_.default)
PRODUCTS = (ATEN.mm.default, ATEN.bmm.default, *ADDED)


class RoundedProducts(TorchDispatchMode):
    """Inside, matrix products of PyTorch, forward and backward, round their operands to ``dtype`` and add up as wide as before.

    Example:
        >>> a = torch.full((1, 1), 1 + 2**-10, dtype=torch.float64)
        >>> with RoundedProducts(torch.bfloat16):
        ...     (a @ a).item()
        1.0
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            first = 1 if func in ADDED else 0
            args = (*args[:first], *(x.to(self.dtype).to(x.dtype) for x in args[first:]))
        return func(*args, **(kwargs or {}))

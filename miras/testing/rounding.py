"""What rounding the operands of every product costs: the error that no kernel with narrow operands can undercut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
ADDED = (ATEN.addmm.default, ATEN.baddbmm.default, ATEN.addmm_.default, ATEN.baddbmm_.default)
PRODUCTS = (ATEN.mm.default, ATEN.bmm.default, *ADDED)


class RoundedProducts(TorchDispatchMode):
    """Inside, matrix products of PyTorch, forward and backward, round their operands to ``dtype`` and add up as wide as before.

    With a seed they round up or down by chance, the nearer way more often: where a threshold decides, what rounding costs is a draw,
    and one of them says little.

    Example:
        >>> a = torch.full((1, 1), 1 + 2**-10, dtype=torch.float64)
        >>> with RoundedProducts(torch.bfloat16):
        ...     (a @ a).item()
        1.0
    """

    def __init__(self, dtype: torch.dtype, seed: int | None = None):
        super().__init__()
        self.dtype = dtype
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            first = 1 if func in ADDED else 0
            args = (*args[:first], *(self.rounded(x) for x in args[first:]))
        return func(*args, **(kwargs or {}))

    def rounded(self, x: Tensor) -> Tensor:
        """What is left of an operand."""
        nearest = x.to(self.dtype).to(x.dtype)
        if self.seed is None:
            return nearest
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        spacing = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent) * (torch.finfo(self.dtype).eps / 2)
        chance = torch.rand(x.shape, generator=self.generators[x.device], dtype=x.dtype, device=x.device)
        return torch.where(nearest == x, x, (x + spacing * (chance - 0.5)).to(self.dtype).to(x.dtype))


def unexplained(
    found: Mapping[str, float], errors: Callable[[], Mapping[str, float]], dtype: torch.dtype, draws: int = 32
) -> dict[str, tuple[float, float]]:
    """Those of the errors ``found`` that are over twice what rounded products cost at worst, beside that bound.

    The cost is the largest ``errors()`` in `RoundedProducts`. One number would be chance: where a threshold decides, or a memory
    magnifies what comes in, it is several times another. So these are rounding to nearest and up to ``draws`` times by chance, which
    counts less by the root of two: it has twice the variance. Drawing ends when all is explained; NaN never is.

    Example:
        >>> unexplained({"y": 0.5, "d k": 0.015}, lambda: {"y": 0.01, "d k": 0.01}, torch.bfloat16)
        {'y': (0.5, 0.02)}
    """
    left, worst = dict(found), dict.fromkeys(found, 0.0)
    for seed in (None, *range(draws)):
        if not left:
            break
        with RoundedProducts(dtype, seed):
            cost = errors()
        weight = 1 if seed is None else 2**-0.5
        worst = {n: max(worst[n], weight * cost[n]) for n in left}
        left = {n: e for n, e in left.items() if not e <= 2 * worst[n]}
    return {n: (e, 2 * worst[n]) for n, e in left.items()}

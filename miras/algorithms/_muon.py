"""An algorithm that turns the update: momentum, orthogonalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms, at_least, geometric, momentum_gate
from miras.engine.filters import Filter, propagator
from miras.gates import Gate

Triple = tuple[float, float, float]

NS_QUINTIC: tuple[Triple, ...] = ((3.4445, -4.7750, 2.0315),)
"""Muon's coefficients; singular values end near one, in about [0.7, 1.2]."""

NS_LACT: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Those of LaCT's code, one triple a step; singular values end in about [0.98, 1.03]."""


def newton_schulz(matrix: Tensor, steps: int, coefficients: tuple[Triple, ...] = NS_QUINTIC) -> Tensor:
    r"""Approximate polar factor of ``[..., I, O]`` by the quintic iteration, with $NS(0)=0$ and finite gradients.

    Steps beyond the last triple of coefficients repeat it.
    """
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    norm = (wide.square().sum((-2, -1), keepdim=True) + 1e-14).sqrt()
    x = wide / norm
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.mT


@algorithms.register("muon")
@dataclass(frozen=True)
class Muon(Algorithm):
    r"""Momentum orthogonalised by Newton-Schulz: $S_t=\mu_tS_{t-1}+g_t$, $U_t=\eta_t\,\mathrm{NS}_k(S_t)$.

    Vectors keep $S_t$ itself. Source: ATLAS (arXiv 2505.23735) Eq. 32-33, with Muon's coefficients.

    Args:
        steps_ns: Newton-Schulz iterations, >= 1.
    """

    slots: ClassVar[int] = 1
    direction_is_identity: ClassVar[bool] = False
    needs_matrices: ClassVar[bool] = True
    lr_is_step: ClassVar[bool] = True
    steps_ns: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps_ns", self.steps_ns, 1)
        if self.per != "head":
            raise ValueError("muon scales an orthogonalised matrix: its learning rate is per head")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return geometric(gates["log_momentum"])

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        return Filter(decay, carry[..., None], decay[..., -1:, :], carry[..., -1:, None])

    def direction(self, update: Tensor, dims: int) -> Tensor:
        return newton_schulz(update, self.steps_ns) if dims == 2 else update

"""Linear filters of the gradient: over a chunk, each is one lower-triangular matrix.

Shapes: n tokens, K slots, ... batch and heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms, at_least, geometric, momentum_gate
from miras.engine.filters import Filter, propagator
from miras.gates import Gate


def _unit(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


@algorithms.register("gd")
@dataclass(frozen=True)
class GD(Algorithm):
    r"""Gradient descent, $U_t=\eta_tg_t$ (MIRAS Eq. 5)."""


@algorithms.register("momentum")
@dataclass(frozen=True)
class Momentum(Algorithm):
    r"""Momentum of order $n$: $S^1_t=\mu_tS^1_{t-1}+\eta_tg_t$, $S^j_t=\mu_tS^j_{t-1}+S^{j-1}_t$, $U_t=S^n_t$.

    Source: Titans (arXiv 2501.00663) Eq. 13-14, which is order 1.

    Args:
        order: number of chained filters, >= 1.
    """

    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("order", self.order, 1)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return geometric(gates["log_momentum"]) ** self.order

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        # powers[j] = decay^j: what slot i holds of slot i-j
        powers = [torch.eye(n, dtype=decay.dtype, device=decay.device).expand_as(decay)]
        for _ in range(self.order):
            powers.append(decay @ powers[-1])
        # slot i at token t: sum_j powers[i-j] (carry * S_j at the start), with the innermost slot first
        starts = [(powers[j] @ carry[..., None])[..., 0] for j in range(self.order)]
        slot_slot = torch.stack(
            [
                torch.stack(
                    [starts[i - j][..., -1] if j <= i else torch.zeros_like(carry[..., -1]) for j in range(self.order)],
                    -1,
                )
                for i in range(self.order)
            ],
            -2,
        )
        return Filter(
            out_in=powers[self.order],
            out_slot=torch.stack(starts[::-1], -1),
            slot_in=torch.stack([powers[i + 1][..., -1, :] for i in range(self.order)], -2),
            slot_slot=slot_slot,
        )


@algorithms.register("nesterov")
@dataclass(frozen=True)
class Nesterov(Algorithm):
    r"""Nesterov's momentum as in ``torch.optim.SGD``: $S_t=\mu_tS_{t-1}+\eta_tg_t$, $U_t=\mu_tS_t+\eta_tg_t$."""

    slots: ClassVar[int] = 1

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return geometric(gates["log_momentum"])

    def filter(self, n: int, gates: Gates) -> Filter:
        momentum = gates["log_momentum"].exp()
        decay, carry = propagator(gates["log_momentum"])
        eye = torch.eye(n, dtype=decay.dtype, device=decay.device)
        return Filter(
            out_in=momentum[..., None] * decay + eye,
            out_slot=(momentum * carry)[..., None],
            slot_in=decay[..., -1:, :],
            slot_slot=carry[..., -1:, None],
        )


@algorithms.register("qhm")
@dataclass(frozen=True)
class QHM(Algorithm):
    r"""Quasi-hyperbolic momentum: $S_t=\mu_tS_{t-1}+(1-\mu_t)\eta_tg_t$, $U_t=(1-\nu)\eta_tg_t+\nu S_t$.

    Source: Ma and Yarats (arXiv 1810.06801); step for step ``torch_optimizer.QHM``.

    Args:
        nu: weight of the averaged gradient, in [0, 1].
    """

    slots: ClassVar[int] = 1
    nu: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nu <= 1:
            raise ValueError(f"nu must lie in [0, 1], got {self.nu}")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": momentum_gate()}

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        averaged = decay * -torch.expm1(gates["log_momentum"])[..., None, :]
        eye = torch.eye(n, dtype=decay.dtype, device=decay.device)
        return Filter(
            out_in=(1 - self.nu) * eye + self.nu * averaged,
            out_slot=self.nu * carry[..., None],
            slot_in=averaged[..., -1:, :],
            slot_slot=carry[..., -1:, None],
        )


@algorithms.register("aggmo")
@dataclass(frozen=True)
class AggMo(Algorithm):
    r"""Aggregated momentum: $S^j_t=\beta_jS^j_{t-1}+\eta_tg_t$, $U_t=\tfrac1K\sum_jS^j_t$.

    Source: Lucas et al. (arXiv 1804.00325); step for step ``torch_optimizer.AggMo``.

    Args:
        betas: the fixed momenta, each in [0, 1).
    """

    betas: tuple[float, ...] = (0.0, 0.5, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.betas:
            raise ValueError("betas must hold at least one momentum")
        for beta in self.betas:
            _unit("every beta", beta)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return len(self.betas)

    def gain(self, gates: Gates) -> float:
        return sum(1 / (1 - beta) for beta in self.betas) / len(self.betas)

    def filter(self, n: int, gates: Gates) -> Filter:
        like = gates["lr"]
        age = torch.arange(n, dtype=like.dtype, device=like.device)
        betas = torch.tensor(self.betas, dtype=like.dtype, device=like.device)
        powers = betas[:, None, None] ** (age[:, None] - age).clamp_min(0)
        decay, carry = powers.tril(), betas[:, None] ** (age + 1)
        slot_slot = torch.diag(carry[:, -1])
        return Filter(decay.mean(0), carry.mT / self.slots, decay[:, -1], slot_slot)


@algorithms.register("fir")
@dataclass(frozen=True)
class FIR(Algorithm):
    r"""A finite window of past gradients as they were taken: $U_t=\sum_{j<w}c_j\,\eta_{t-j}g_{t-j}$.

    Unlike `omega` the gradients are stale, not taken again. An extension of ours.

    Args:
        taps: the weights $c_0,\dots,c_{w-1}$, newest first, at least one.
    """

    taps: tuple[float, ...] = (0.5, 0.3, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "taps", tuple(self.taps))
        if len(self.taps) < 2:
            raise ValueError(f"taps must hold at least two weights (one is gd), got {self.taps}")
        if not all(math.isfinite(tap) for tap in self.taps):
            raise ValueError(f"taps must be finite numbers, got {self.taps}")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return len(self.taps) - 1

    def gain(self, gates: Gates) -> float:
        return sum(abs(tap) for tap in self.taps)

    def filter(self, n: int, gates: Gates) -> Filter:
        like = gates["lr"]
        k = self.slots
        # a line of k stored gradients (oldest first) followed by the n new ones
        age = k + torch.arange(n, device=like.device)[:, None] - torch.arange(k + n, device=like.device)
        inside = (age >= 0) & (age <= k)
        taps = torch.tensor(self.taps, dtype=like.dtype, device=like.device)
        out = torch.where(inside, taps[age.clamp(0, k)], 0.0)
        shift = torch.eye(k + n, dtype=like.dtype, device=like.device)[n:]
        return Filter(out[:, k:], out[:, :k], shift[:, k:], shift[:, :k])

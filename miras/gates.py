"""Gates are declared by components, gathered by the module, and computed by one fused projection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Per = Literal["head", "key", "value"]
Measure = Literal["head", "key", "value", "entry", "weight"]
"""What a gate is measured out to; only a decay can be one per entry of a matrix, only a rate one per fast weight."""
MEASURES = get_args(Measure)


RANGES = {"sigmoid": (0, 1), "log_sigmoid": (0, 1), "softplus": (0, math.inf), "identity": (-math.inf, math.inf)}
"""Between what a gate may start, or the exponential of one that is a log."""


@dataclass(frozen=True)
class Gate:
    """A number, or a vector of channels, that a component wants for every token.

    Args:
        squash: how the module maps a real projection to the gate: ``sigmoid`` to (0, scale), ``log_sigmoid`` to
            the log of (0, 1) (decay and momentum travel as logs), ``softplus`` to (0, inf), ``identity``.
        init: the value at initialisation; for ``log_sigmoid`` the value of the *exponential* of the gate.
        per: ``head`` gives ``[B, T, H]``; ``key`` and ``value`` give one number per channel, ``[B, T, H, D]``; ``entry``
            one for each pair of them, ``[B, T, H, D_key, D_value]``; ``weight`` one for every fast weight, in the order of
            `Architecture.shapes`.
        scale: the largest value of a ``sigmoid`` gate.
    """

    squash: Literal["sigmoid", "log_sigmoid", "softplus", "identity"]
    init: float
    per: Measure = "head"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.squash not in RANGES or self.per not in MEASURES:
            raise ValueError(
                f"a gate needs a squash of {', '.join(RANGES)} and to be per {', '.join(MEASURES)}; "
                f"got {self.squash!r} and {self.per!r}"
            )
        low, high = RANGES[self.squash]
        start = self.init / self.scale if self.squash == "sigmoid" and self.scale else self.init
        if not (low < start < high and self.scale):
            raise ValueError(
                f"a {self.squash} gate starts between {low:g} and {high:g}{' times scale' * (self.squash == 'sigmoid')}, "
                f"both excluded; got init={self.init} and scale={self.scale}"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """The gate from a real projection that is zero at initialisation."""
        match self.squash:
            case "sigmoid":
                return self.scale * torch.sigmoid(logits + _logit(self.init / self.scale))
            case "log_sigmoid":
                return F.logsigmoid(logits + _logit(self.init))
            case "softplus":
                return F.softplus(logits + math.log(math.expm1(self.init)))
            case "identity":
                return logits + self.init


def channels(d_key: int, d_value: int, weights: int = 1) -> dict[Measure, tuple[int, ...]]:
    """The shape of a gate of each measure beyond ``[B, T, H]``."""
    return {"head": (), "key": (d_key,), "value": (d_value,), "entry": (d_key, d_value), "weight": (weights,)}


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


class GateProjection(nn.Module):
    """All gates of a layer from its input: one matrix for gates per head, one through a low rank for gates per channel.

    Args:
        dim: width of the input.
        heads: number of heads.
        gates: the declared gates.
        d_key: channels of ``key`` gates.
        d_value: channels of ``value`` gates.
        weights: number of fast weights, for ``weight`` gates.
        pairs: for every gate, how many pairs of a token have their own.
        rank: of the projection to channels.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        gates: Mapping[str, Gate],
        d_key: int,
        d_value: int,
        weights: int,
        pairs: Mapping[str, int],
        rank: int,
    ):
        super().__init__()
        self.heads, self.declared, self.pairs = heads, dict(gates), dict(pairs)
        self.per_head = [n for n, g in gates.items() if g.per == "head"]
        self.per_channel = [n for n, g in gates.items() if g.per != "head"]
        self.widths = channels(d_key, d_value, weights)
        self.sizes = {n: heads * pairs[n] * math.prod(self.widths[g.per]) for n, g in gates.items()}
        self.direct = self.down = self.up = None
        if self.per_head:
            self.direct = nn.Linear(dim, sum(self.sizes[n] for n in self.per_head), bias=False)
        if self.per_channel:
            self.down = nn.Linear(dim, rank, bias=False)
            self.up = nn.Linear(rank, sum(self.sizes[n] for n in self.per_channel), bias=False)
        if self.direct is not None:
            nn.init.normal_(self.direct.weight, std=0.1 * dim**-0.5)
        if self.down is not None and self.up is not None:
            nn.init.normal_(self.down.weight, std=dim**-0.5)
            nn.init.normal_(self.up.weight, std=0.1 * rank**-0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Gates by name, ``[B, T, H]``, ``[B, T, H, N]``, ``[B, T, H, *channels]`` or ``[B, T, H, N, *channels]``."""
        parts: dict[str, Tensor] = {}
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.direct is not None:
            parts |= zip(self.per_head, self._split(self.direct(x).to(wide), self.per_head), strict=True)
        if self.down is not None and self.up is not None:
            parts |= zip(self.per_channel, self._split(self.up(self.down(x)).to(wide), self.per_channel), strict=True)
        return {n: self._shape(n, gate(parts[n])) for n, gate in self.declared.items()}

    def _split(self, logits: Tensor, names: list[str]) -> tuple[Tensor, ...]:
        return logits.split([self.sizes[n] for n in names], -1)

    def _shape(self, name: str, gate: Tensor) -> Tensor:
        n = (self.pairs[name],) if self.pairs[name] > 1 else ()
        d = self.widths[self.declared[name].per]
        return gate.unflatten(-1, (self.heads, *n, *d)) if n or d else gate

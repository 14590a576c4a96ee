r"""Matrix memories behind a fixed feature map of keys and queries.

Shapes: ``x`` is ``[..., T, d_key]``, its features ``[..., T, F]``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.architectures._base import (
    Architecture,
    FastWeight,
    Tap,
    View,
    architectures,
    at_least,
    unused,
)
from miras.architectures._simple import linear_tap

Kind = Literal["elu", "relu", "softmax", "polynomial", "taylor", "random_fourier", "random_positive"]

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "polynomial": ("degree",),
    "taylor": ("degree",),
    "random_fourier": ("dim", "seed"),
    "random_positive": ("dim", "seed"),
}


@architectures.register("feature_map")
@dataclass(frozen=True)
class FeatureMap(Architecture):
    r"""A matrix on features, $\mathcal M(W;x)=\phi(x)W$, hence the kernel $\phi(q)^\top\phi(k)$ between tokens.

    | ``kind`` | $\phi$ | kernel |
    |---|---|---|
    | ``elu`` | $\mathrm{elu}(x)+1$ | linear attention (arXiv 2006.16236) |
    | ``relu`` | $\max(x,0)$ | |
    | ``softmax`` | $\mathrm{softmax}(x)$ over channels | efficient attention (1812.01243) |
    | ``polynomial`` | all monomials up to ``degree`` | $(1+q^\top k)^p$ exactly |
    | ``taylor`` | all monomials up to ``degree`` | $\sum_{i\le p}(q^\top k)^i/i!$ exactly |
    | ``random_fourier`` | $[\cos\Omega x,\ \sin\Omega x]\sqrt{2/F}$ | $\approx e^{-\lVert q-k\rVert^2/2}$ (Rahimi & Recht) |
    | ``random_positive`` | $e^{\Omega x-\lVert x\rVert^2/2}/\sqrt F$ | $\approx e^{q^\top k}$ (2009.14794) |

    Monomials carry the root of their multinomial coefficient, $\sqrt2$ for $x_ix_j$, without which the kernel
    would not be a function of $q^\top k$. Source of the polynomial maps: ATLAS (2505.23735) Eq. 5 and 22-23.

    Args:
        kind: one of the table.
        degree: $p\ge1$ of the polynomial maps, which have $F=\binom{d_k+p}{p}$ features.
        dim: number of random features $F\ge1$, even for ``random_fourier``.
        seed: of the fixed random frequencies, $\ge0$; the same numbers on every device.

    Raises:
        ValueError: for an unknown kind, a value outside its range, or an option that the kind does not use.
    """

    is_linear: ClassVar[bool] = True
    kind: Kind = "elu"
    degree: int = 2
    dim: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        kinds: tuple[str, ...] = get_args(Kind)
        if self.kind not in kinds:
            close = difflib.get_close_matches(str(self.kind), kinds, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{self.name}: no kind {self.kind!r}{hint} (have: {', '.join(kinds)})")
        options = {"degree", "dim", "seed"} - set(_OPTIONS.get(self.kind, ()))
        unused(self, tuple(options), f"with kind={self.kind!r}")
        at_least(self, "degree", 1)
        at_least(self, "dim", 1)
        at_least(self, "seed", 0)
        if self.kind == "random_fourier" and self.dim % 2:
            raise ValueError(f"{self.name}: dim must be even (cosines and sines); got {self.dim}")

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        match self.kind:
            case "polynomial" | "taylor":
                width, by_channel = math.comb(d_key + self.degree, self.degree), False
            case "random_fourier" | "random_positive":
                width, by_channel = self.dim, False
            case "elu" | "relu" | "softmax":
                width, by_channel = d_key, True
        return {"w": FastWeight((width, d_value), reads_key=by_channel, writes_value=True)}

    def features(self, x: Tensor) -> Tensor:
        match self.kind:
            case "elu":
                return F.elu(x) + 1
            case "relu":
                return F.relu(x)
            case "softmax":
                return torch.softmax(x, dim=-1)
            case "polynomial" | "taylor":
                return _polynomial(x, self.degree, taylor=self.kind == "taylor")
            case "random_fourier":
                z = x @ _gaussian(x, self.dim // 2, self.seed)
                return torch.cat([z.cos(), z.sin()], dim=-1) / math.sqrt(self.dim // 2)
            case "random_positive":
                z = x @ _gaussian(x, self.dim, self.seed)
                z = z - 0.5 * x.square().sum(-1, keepdim=True)
                return torch.exp(z) / math.sqrt(self.dim)

    def forward(self, w: View, x: Tensor) -> Tensor:
        return w.dense("w", self.features(x))

    def tap(self, w: View, x: Tensor) -> Tap:
        return linear_tap(w, "w", self.features(x))


def _polynomial(x: Tensor, degree: int, taylor: bool) -> Tensor:
    r"""Monomials up to ``degree`` whose inner products are $(1+q^\top k)^p$ or $\sum_{i\le p}(q^\top k)^i/i!$.

    A monomial up to degree $p$ is one of degree exactly $p$ in $(1,x)$. With exponents $\beta$, the weights
    squared are $p!/\prod_{j\ge0}\beta_j!$ and $1/\prod_{j\ge1}\beta_j!$. In lexicographic order the monomials of
    degree $p-1$ without the first $j$ variables are a suffix, so each degree follows from the last by one
    gather: no table is kept, every shape is static, and nothing is larger than the result.
    """
    x = F.pad(x, (1, 0), value=1.0)
    n = x.shape[-1]
    variables = torch.arange(n, device=x.device)
    first, run = variables, torch.ones_like(variables)  # first variable and its exponent
    factorials = torch.ones_like(variables)
    y = x
    for p in range(2, degree + 1):
        sizes = [math.comb(n - j + p - 2, p - 1) for j in range(n)]  # of the suffixes
        counts = torch.tensor(sizes, device=x.device)
        previous, total = sizes[0], sum(sizes)
        lead = torch.repeat_interleave(variables, counts, output_size=total)
        rest = torch.arange(total, device=x.device) - counts.cumsum(0)[lead] + previous
        run = torch.where(first[rest] == lead, run[rest] + 1, 1)
        factorials = factorials[rest] * (torch.where(lead == 0, 1, run) if taylor else run)
        first = lead
        y = x[..., lead] * y[..., rest]
    scale = 1 if taylor else math.factorial(degree)
    return y * (scale / factorials.to(x.dtype)).sqrt()


def _gaussian(x: Tensor, dim: int, seed: int) -> Tensor:
    """Standard normals ``[d_key, dim]`` from a hash of their position.

    A generator would not trace, would differ between devices and is refused under ``vmap``; the integer hash
    (lowbias32) and the inverse error function have none of these troubles.
    """
    mask = 0xFFFFFFFF
    start = 1 + seed * 0x9E3779B9  # the hash of 0 is 0
    n = torch.arange(x.shape[-1] * dim, device=x.device) + (start & mask) & mask
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):  # products stay within 64 bits
        n = (n ^ (n >> shift)) * multiplier & mask
    uniform = ((n ^ (n >> 16)).double() + 0.5) / 2**32
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    return normal.view(x.shape[-1], dim).to(x.dtype)

"""In-context regression whose targets are sometimes far off: why robust inner losses exist.

Shapes: T pairs, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Keys ``[T, D]`` of length one, values ``[T, D]`` as they are seen, which of them are wrong ``[T]``, and the map ``[D, D]``."""

    keys: Tensor
    values: Tensor
    wrong: Tensor
    map: Tensor


@dataclass(frozen=True, kw_only=True)
class OutlierRegression:
    r"""Pairs $(k_t, Wk_t)$ with $\|k_t\|=1$, $W_{ij}\sim\mathcal N(0,1)$; $\mathcal N(0,\text{scale}^2)$ is added to a share of the values.

    Args:
        dim: D.
        length: T.
        outliers: share of the values that are wrong.
        scale: standard deviation of what is added to them.

    Example:
        >>> keys, values, wrong, map = OutlierRegression(dim=4, outliers=0.5).draw(seed=0, index=0)
        >>> torch.allclose(values[~wrong], keys[~wrong] @ map.T)
        True
    """

    dim: int = 32
    length: int = 400
    outliers: float = 0.02
    scale: float = 20.0

    def __post_init__(self) -> None:
        if self.dim < 1 or self.length < 1 or not 0 <= self.outliers <= 1 or self.scale < 0:
            raise ValueError(f"dim and length must be at least 1, outliers in [0, 1], scale at least 0; got {self}")

    def draw(self, seed: int, index: int) -> Pairs:
        """Problem ``index``, in float64."""
        rng = np.random.default_rng([seed, index])
        keys = rng.standard_normal((self.length, self.dim))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        map = rng.standard_normal((self.dim, self.dim))
        wrong = rng.random(self.length) < self.outliers
        noise = self.scale * rng.standard_normal((self.length, self.dim))
        values = keys @ map.T + wrong[:, None] * noise
        return Pairs(*(torch.from_numpy(x) for x in (keys, values, wrong, map)))

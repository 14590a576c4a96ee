"""How sure a number is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, mean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


def wilson(correct: float, total: int, confidence: float = 0.95) -> Interval:
    r"""The share of successes with Wilson's score interval, which is sound near 0 and 1 too (Wilson 1927, JASA 22).

    $\frac{1}{1+z^2/n}\Big(\hat p+\frac{z^2}{2n}\pm z\sqrt{\frac{\hat p(1-\hat p)}{n}+\frac{z^2}{4n^2}}\Big)$

    Args:
        correct: number of successes; their share need not be a multiple of 1 / total.
        total: number of trials, at least 1.
        confidence: of the interval, in (0, 1).

    Example:
        >>> [round(x, 3) for x in wilson(10, 10)]
        [1.0, 0.722, 1.0]
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"wilson needs 0 <= correct <= total and a total of at least 1, got {correct} of {total}")
    z, p = NormalDist().inv_cdf(0.5 + confidence / 2), correct / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = (x / (1 + z * z / total) for x in (centre - half, centre + half))
    return Interval(p, max(0.0, low) if correct else 0.0, min(1.0, high) if correct < total else 1.0)


T_QUANTILES = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5% quantiles of Student's t by degrees of freedom; above 10 `quantile` has a series for them."""


def quantile(freedom: int) -> float:
    r"""The 97.5% quantile of Student's t for at least one degree of freedom $\nu$, to 1e-3.

    Above 10 by a series from the normal's $z$ (Abramowitz and Stegun 26.7.5), which is off by less than 2e-4 there:
    $z+\frac{z^3+z}{4\nu}+\frac{5z^5+16z^3+3z}{96\nu^2}+\frac{3z^7+19z^5+17z^3-15z}{384\nu^3}$.

    Example:
        >>> [round(quantile(n), 3) for n in (1, 11, 100)]
        [12.706, 2.201, 1.984]
    """
    if freedom < len(T_QUANTILES):
        return T_QUANTILES[freedom]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of independent runs with Student's interval; of one run, the number without one (NaN).

    Example:
        >>> [round(x, 2) for x in over_seeds([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    n = len(values)
    if n < 1:
        raise ValueError("over_seeds needs the value of at least one run, got none")
    if n == 1:
        return Interval(values[0], math.nan, math.nan)
    half = quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean(values), mean(values) - half, mean(values) + half)

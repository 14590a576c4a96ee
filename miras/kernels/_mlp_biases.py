"""Fast biases beside both matrices of a perceptron: ``z = k W1 + b1`` and ``o = h W2 + b2``.

A bias is one more row of its matrix, whose key is always one: its errors and coefficients are those of the matrix, but a bound
makes its rates ``t`` its own. What queries read of a chunk's pairs is ``(s1 q k^T + t1) u1`` and ``(s2 hr h^T + t2) u2``. Both of
a head lie behind each other, ``[F + O]``. Every program has its tile of the first and the whole of the second, which all form alike.

Their rates, ``rates_b [b, count, 4, C]``, are t1 and t2 and then the gradients of both from what queries read.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import dot


@triton.jit
def paired(a, b, pairs, at, s, t, BIASES: tl.constexpr):
    """What a query takes of the errors of every pair: ``pairs (s a b + t)``, where a bias takes t."""
    if BIASES:
        x = (dot(a, b) * s + t) * tl.load(pairs + at)
    else:
        x = dot(a, b) * tl.load(pairs + at) * s
    return x


@triton.jit
def load_bias_rates(rates_b, local, rc, C: tl.constexpr):
    """Of both biases."""
    return tl.load(rates_b + local * 4 * C + rc), tl.load(rates_b + (local * 4 + 1) * C + rc)


@triton.jit
def load_biases(biases, rf, ro, F: tl.constexpr):
    """Some channels of the first, and the second."""
    return tl.load(biases + rf), tl.load(biases + F + ro)


@triton.jit
def store_biases(biases, b1, b2, rf, ro, tile, F: tl.constexpr):
    """This tile of the first; the first tile stores the second."""
    tl.store(biases + rf, b1)
    if tile == 0:
        tl.store(biases + F + ro, b2)

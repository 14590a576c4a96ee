"""Fast biases beside both matrices of a perceptron: ``z = k W1 + b1`` and ``o = h W2 + b2``.

A bias is one more row of its matrix, whose key is always one: its errors and coefficients are those of the matrix, but a bound
makes its rates ``t`` its own. What queries read of a chunk's pairs is ``(s1 q k^T + t1) u1`` and ``(s2 hr h^T + t2) u2``. Both of
a head lie behind each other, ``[F + O]``. Every program has its tile of the first and the whole of the second, which all form alike.

Their rates, ``rates_b [b, count, 4, C]``, are t1 and t2 and then the gradients of both from what queries read.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.parts import dot


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
def load_biases(biases, rf, ro, F: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr):
    """This tile of the first and all of the second, then the same of their slot; the memory's in its place without one."""
    b1, b2 = tl.load(biases + rf), tl.load(biases + F + ro)
    c1, c2 = b1, b2
    if SLOT:
        c1, c2 = tl.load(biases + F + O + rf), tl.load(biases + F + O + F + ro)
    return b1, b2, c1, c2


@triton.jit
def store_biases(biases, b1, b2, c1, c2, rf, ro, tile, F: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr):
    """What `load_biases` loads; the first tile stores the second bias."""
    tl.store(biases + rf, b1)
    if tile == 0:
        tl.store(biases + F + ro, b2)
    if SLOT:
        tl.store(biases + F + O + rf, c1)
        if tile == 0:
            tl.store(biases + F + O + F + ro, c2)


@triton.jit
def mixed(b1, b2, c1, c2, mix, BACK: tl.constexpr, SLOT: tl.constexpr):
    """``sum_j mix_ij b_j``, or of their gradients ``sum_i mix_ij b_i``."""
    m00 = tl.load(mix)
    if SLOT:
        m01, m10, m11 = tl.load(mix + (2 if BACK else 1)), tl.load(mix + (1 if BACK else 2)), tl.load(mix + 3)
        x1, x2 = m10 * b1 + m11 * c1, m10 * b2 + m11 * c2
        b1, b2 = m00 * b1 + m01 * c1, m00 * b2 + m01 * c2
        c1, c2 = x1, x2
    else:
        b1, b2 = m00 * b1, m00 * b2
    return b1, b2, c1, c2


@triton.jit
def both(row0, row1, b, c, SLOT: tl.constexpr):
    """What tokens multiply memory and slot with times a bias of both, ``[C, ...]``."""
    x = row0 * b[None, :]
    if SLOT:
        x += row1 * c[None, :]
    return x

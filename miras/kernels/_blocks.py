"""Triton: the inverse of a triangular system by fewer large products than `miras.kernels._pull.inverse` takes.

Blocks of SMALL tokens on the diagonal are inverted beside each other, in products of that size, and then joined.
"""

import triton
import triton.language as tl


@triton.jit
def joined(L, X, t, s, FIRST: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """From inverses X of diagonal blocks of ``2**FIRST``, that of ``1 + L``; ``t ^ s`` tells at which size two tokens part."""
    for level in tl.static_range(FIRST, LEVELS):
        below = (((t ^ s) >> level) == 1) & (t > s)
        B = tl.where(below, L, 0.0)
        X -= tl.dot(X, tl.dot(B, X, input_precision=PRECISION), input_precision=PRECISION)
    return X


@triton.jit
def inverted(
    L,
    rc,
    BC: tl.constexpr,
    LEVELS: tl.constexpr,
    SMALL: tl.constexpr,
    SMALL_LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``(1 + L)^-1`` of strictly lower ``L [t, s]``; what stands above or on its diagonal is not read."""
    t, s = rc[:, None], rc[None, :]
    if SMALL == 0:
        X = tl.where(t == s, 1.0, 0.0) - tl.where(((t ^ s) == 1) & (t > s), L, 0.0)
        X = joined(L, X, t, s, 1, LEVELS, PRECISION)
    else:
        count: tl.constexpr = BC // SMALL
        own = tl.arange(0, count)[:, None, None, None] == tl.arange(0, count)[None, None, :, None]
        D = tl.sum(tl.where(own, tl.reshape(L, [count, SMALL, count, SMALL]), 0.0), 2)
        r = tl.arange(0, SMALL)
        u, v = r[None, :, None], r[None, None, :]
        Y = tl.where(u == v, 1.0, 0.0) - tl.where(((u ^ v) == 1) & (u > v), D, 0.0)
        Y = joined(D, Y, u, v, 1, SMALL_LEVELS, PRECISION)
        X = tl.reshape(tl.where(own, Y[:, :, None, :], 0.0), [BC, BC])
        X = joined(L, X, t, s, SMALL_LEVELS, LEVELS, PRECISION)
    return X

"""Triton: the inverse of a triangular system by joining ever larger diagonal blocks.

Blocks of SMALL tokens on the diagonal are inverted beside each other, in products of that size, and then joined in large ones.
"""

import triton
import triton.language as tl

SMALL, SMALL_LEVELS = tl.constexpr(16), tl.constexpr(4)
"""Tokens of the blocks, and their levels: ``2**4``."""


@triton.jit
def joined(L, X, t, s, FIRST: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """From inverses X of diagonal blocks of ``2**FIRST``, that of ``1 + L``; ``t ^ s`` tells at which size two tokens part."""
    for level in tl.static_range(FIRST, LEVELS):
        below = (((t ^ s) >> level) == 1) & (t > s)
        B = tl.where(below, L, 0.0)
        X -= tl.dot(X, tl.dot(B, X, input_precision=PRECISION), input_precision=PRECISION)
    return X


@triton.jit
def inverted(L, rc, BC: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """``(1 + L)^-1`` of strictly lower ``L [t, s]`` of ``2**LEVELS`` tokens; what is above or on its diagonal is not read."""
    count: tl.constexpr = BC // SMALL
    own = tl.arange(0, count)[:, None, None, None] == tl.arange(0, count)[None, None, :, None]
    D = tl.sum(tl.where(own, tl.reshape(L, [count, SMALL, count, SMALL]), 0.0), 2)
    r = tl.arange(0, SMALL)
    u, v = r[None, :, None], r[None, None, :]
    Y = tl.where(u == v, 1.0, 0.0) - tl.where(((u ^ v) == 1) & (u > v), D, 0.0)
    Y = joined(D, Y, u, v, 1, SMALL_LEVELS, PRECISION)
    X = tl.reshape(tl.where(own, Y[:, :, None, :], 0.0), [BC, BC])
    return joined(L, X, rc[:, None], rc[None, :], SMALL_LEVELS, LEVELS, PRECISION)

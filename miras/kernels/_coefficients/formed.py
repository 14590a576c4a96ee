"""Triton: propagators formed where they are multiplied with, instead of loaded.

FORM, by what stands in the place of ``pairs``, numbers of a tile's tokens: 1 two rows of sums of logs, ``exp(first_t - second_s)``;
2 nothing, ones; 3 one row, ``first_t``; 0 the matrix itself. STRICT leaves out a token's own.
"""

import triton
import triton.language as tl


@triton.jit
def formed(
    pairs, at, rc, C, keep, FORM: tl.constexpr, STRICT: tl.constexpr, TRANSPOSED: tl.constexpr, DT: tl.constexpr
):
    """``[t, s]`` of a tile, or ``[s, t]``."""
    if TRANSPOSED:
        t, s = rc[None, :], rc[:, None]
    else:
        t, s = rc[:, None], rc[None, :]
    if STRICT:
        seen = t > s
    else:
        seen = t >= s
    if FORM == 2:
        M = tl.where(seen, 1.0, 0.0)
    elif FORM == 3:
        first = tl.load(pairs + at * C + rc, mask=keep, other=0.0).to(DT).to(tl.float32)
        M = tl.where(seen, first[None, :] if TRANSPOSED else first[:, None], 0.0)
    else:
        first = tl.load(pairs + at * 2 * C + rc, mask=keep, other=0.0)
        second = tl.load(pairs + at * 2 * C + C + rc, mask=keep, other=0.0)
        log = first[None, :] - second[:, None] if TRANSPOSED else first[:, None] - second[None, :]
        M = tl.where(seen, tl.exp(log), 0.0)
    return M


@triton.jit
def store_gradients(d_pairs, at, rc, C, X, M, FORM: tl.constexpr):
    """From the gradient ``X [t, s]`` of propagators ``M``, that of what they were formed from."""
    whole = rc < C  # coefficients of tokens that do not exist get zeros
    if FORM == 1:
        tl.store(d_pairs + at * 2 * C + rc, tl.sum(X * M, 1), mask=whole)
        tl.store(d_pairs + at * 2 * C + C + rc, -tl.sum(X * M, 0), mask=whole)
    elif FORM == 3:
        tl.store(d_pairs + at * C + rc, tl.sum(tl.where(rc[:, None] >= rc[None, :], X, 0.0), 1), mask=whole)

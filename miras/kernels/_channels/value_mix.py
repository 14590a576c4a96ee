"""Triton: what queries read of a tile where every value channel decays at its own rate.

With ``z`` the running sum of the log decays of a tile, zx that sum up to a reader, inclusive or one token earlier (EARLY):

    y[t, o] = exp(zx_to) base_to + sum_s S[t, s] exp(zx_to - z_so) e_so     s <= t, or s < t

This is the gradient of what `miras.kernels._channels.pairs` computes, with value channels in the place of key channels: its
functions are used the other way round, so no ``[C, C, O]`` leaves the chip and no exponent is positive.
"""

import triton
import triton.language as tl

from miras.kernels._channels.pairs import BLOCK, look, put, rows, seen_from, weighed


@triton.jit
def mix(
    base, scores, e, z, y, O,
    C: tl.constexpr, BO: tl.constexpr, EARLY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for 16 tokens of a tile. Scores above the diagonal are not looked at."""
    pid = tl.program_id(0).to(tl.int64)
    tile, r = pid // (C // BLOCK), (pid % (C // BLOCK)).to(tl.int32) * BLOCK
    ro, at = tl.arange(0, BO), tile * C * O
    Y = weighed(e + at, z + at, scores + tile * C * C, base + at, r, ro, O, C, BO, EARLY, EARLY, PRECISION)
    put(y + at, r + tl.arange(0, BLOCK), ro, O, Y)


@triton.jit
def mix_back(
    base, scores, e, z, dy, d_base, d_scores, de, dz, dz_early, O,
    C: tl.constexpr, BO: tl.constexpr, EARLY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of `mix`: those of sums one token earlier apart from those of a token's own. Scores' are zero before."""
    pid = tl.program_id(0).to(tl.int64)
    tile, r = pid // (C // BLOCK), (pid % (C // BLOCK)).to(tl.int32) * BLOCK
    ro, rc = tl.arange(0, BO), r + tl.arange(0, BLOCK)
    at, square = tile * C * O, tile * C * C
    look(dy + at, e + at, z + at, d_scores + square, d_base + at, r, ro, O, C, EARLY, EARLY, PRECISION)
    dE = seen_from(dy + at, z + at, scores + square, r, ro, O, C, BO, EARLY, EARLY, PRECISION)
    put(de + at, rc, ro, O, dE)
    # computed again: rounded outputs would leave more than rounding of the differences that these sums become
    Y = weighed(e + at, z + at, scores + square, base + at, r, ro, O, C, BO, EARLY, EARLY, PRECISION)
    dZX, dZ = Y * rows(dy + at, rc, ro, O), -dE * rows(e + at, rc, ro, O)
    if EARLY:
        put(dz_early + at, rc, ro, O, dZX)
    else:
        dZ += dZX
    put(dz + at, rc, ro, O, dZ)

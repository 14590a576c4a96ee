"""Triton: how tokens of a tile see each other where every key channel decays at its own rate.

With ``z`` the running sum of the log decays of a tile, zx that sum up to a reader x, inclusive or one token earlier (EARLY):

    S[t, s] = sum_i x_ti a_si exp(zx_ti - z_si)     s <= t, or s < t
    x exp(zx),  -a exp(z_last - z)                  what a reader sees of the state before, a writer leaves at the end

No exponent is positive: blocks of 16 tokens meet through the sum before the later block, and inside a block every ratio is
formed by itself. Readers are queries and, where every token sees those before it, keys. Every tile is whole.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(16)


@triton.jit
def rows(pointer, r, ri, I):
    """Some rows in float32; zero before the first."""
    there = (r >= 0)[:, None] & (ri < I)[None, :]
    return tl.load(pointer + r[:, None] * I + ri[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def row(pointer, r, ri, I):
    """One row in float32; zero before the first."""
    return tl.load(pointer + r * I + ri, mask=(ri < I) & (r >= 0), other=0.0).to(tl.float32)


@triton.jit
def put(pointer, r, ri, I, x):
    tl.store(pointer + r[:, None] * I + ri[None, :], x.to(pointer.dtype.element_ty), mask=(ri < I)[None, :])


@triton.jit
def look(
    x,
    a,
    z,
    out,
    seen,
    r,
    ri,
    I,
    C,
    EARLY: tl.constexpr,
    STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of 16 readers from the r-th, and what they see of the state before the tile."""
    here = tl.arange(0, BLOCK)
    rc = r + here
    X, ZX, before = rows(x, rc, ri, I), rows(z, rc - EARLY, ri, I), row(z, r - 1, ri, I)
    put(seen, rc, ri, I, X * tl.exp(ZX))
    left = X * tl.exp(ZX - before[None, :])
    for block in range(0, r // BLOCK):
        rs = block * BLOCK + here
        past = rows(a, rs, ri, I) * tl.exp(before[None, :] - rows(z, rs, ri, I))
        put(out, rc, rs, C, tl.dot(left, tl.trans(past), input_precision=PRECISION))
    S = tl.zeros([BLOCK, BLOCK], tl.float32)
    for s in range(0, BLOCK):
        ratio = tl.exp(tl.minimum(ZX - row(z, r + s, ri, I)[None, :], 0.0))
        column = tl.sum(X * row(a, r + s, ri, I)[None, :] * ratio, 1)
        S += tl.where((here == s)[None, :] & (here >= s + STRICT)[:, None], column[:, None], 0.0)
    put(out, rc, rc, C, S)


@triton.jit
def pairs(
    q, k, a, z, scores, coupling, asked, predicted, written, I,
    C: tl.constexpr, BI: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr, KEYS_EARLY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for 16 tokens of a tile. Scores above the diagonal are zero before."""
    pid = tl.program_id(0).to(tl.int64)
    tile, r = pid // (C // BLOCK), (pid % (C // BLOCK)).to(tl.int32) * BLOCK
    ri, rc = tl.arange(0, BI), r + tl.arange(0, BLOCK)
    at, square = tile * C * I, tile * C * C
    look(q + at, a + at, z + at, scores + square, asked + at, r, ri, I, C, EARLY, EARLY, PRECISION)
    if KEYS:
        look(k + at, a + at, z + at, coupling + square, predicted + at, r, ri, I, C, KEYS_EARLY, 1, PRECISION)
    last = row(z + at, C - 1, ri, I)
    put(written + at, rc, ri, I, -rows(a + at, rc, ri, I) * tl.exp(last[None, :] - rows(z + at, rc, ri, I)))


@triton.jit
def weighed(
    a, z, d_out, d_seen, r, ri, I, C, BI: tl.constexpr, EARLY: tl.constexpr, STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What 16 readers get of writers and of the state before the tile, channel by channel, for scores ``d_out``."""
    here = tl.arange(0, BLOCK)
    rc = r + here
    ZX, before = rows(z, rc - EARLY, ri, I), row(z, r - 1, ri, I)
    dX = tl.zeros([BLOCK, BI], tl.float32)
    for block in range(0, r // BLOCK):
        rs = block * BLOCK + here
        past = rows(a, rs, ri, I) * tl.exp(before[None, :] - rows(z, rs, ri, I))
        dX = tl.dot(rows(d_out, rc, rs, C), past, dX, input_precision=PRECISION)
    dX = dX * tl.exp(ZX - before[None, :]) + rows(d_seen, rc, ri, I) * tl.exp(ZX)
    for s in range(0, BLOCK):
        ratio = tl.exp(tl.minimum(ZX - row(z, r + s, ri, I)[None, :], 0.0))
        d = tl.load(d_out + rc * C + r + s).to(tl.float32)
        dX += tl.where(here >= s + STRICT, d, 0.0)[:, None] * row(a, r + s, ri, I)[None, :] * ratio
    return dX


@triton.jit
def look_back(
    x, a, z, d_out, d_seen, dx, r, ri, I, C, BI: tl.constexpr, EARLY: tl.constexpr, STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of 16 readers, stored; that of their sums of log decays, returned."""
    rc = r + tl.arange(0, BLOCK)
    dX = weighed(a, z, d_out, d_seen, r, ri, I, C, BI, EARLY, STRICT, PRECISION)
    put(dx, rc, ri, I, dX)
    return rows(x, rc, ri, I) * dX


@triton.jit
def seen_from(
    x, z, d_out, r, ri, I, C: tl.constexpr, BI: tl.constexpr, EARLY: tl.constexpr, STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of 16 writers through the scores."""
    here = tl.arange(0, BLOCK)
    rc = r + here
    Z, end = rows(z, rc, ri, I), row(z, r + BLOCK - 1, ri, I)
    dA = tl.zeros([BLOCK, BI], tl.float32)
    for block in range(r // BLOCK + 1, C // BLOCK):
        rt = block * BLOCK + here
        later = rows(x, rt, ri, I) * tl.exp(rows(z, rt - EARLY, ri, I) - end[None, :])
        d = tl.load(d_out + rt[None, :] * C + rc[:, None]).to(tl.float32)
        dA = tl.dot(d, later, dA, input_precision=PRECISION)
    dA = dA * tl.exp(end[None, :] - Z)
    for t in range(0, BLOCK):
        ratio = tl.exp(tl.minimum(row(z, r + t - EARLY, ri, I)[None, :] - Z, 0.0))
        d = tl.load(d_out + (r + t) * C + rc).to(tl.float32)
        dA += tl.where(here + STRICT <= t, d, 0.0)[:, None] * row(x, r + t, ri, I)[None, :] * ratio
    return dA


@triton.jit
def pairs_back(
    q, k, a, z, d_scores, d_coupling, d_asked, d_predicted, d_written, dq, dk, da, dz, dz_early, d_last, I,
    C: tl.constexpr, BI: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr, KEYS_EARLY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of `pairs`: those of sums one token earlier, and of the last one, apart from those of a token's own."""
    pid = tl.program_id(0).to(tl.int64)
    tile, r = pid // (C // BLOCK), (pid % (C // BLOCK)).to(tl.int32) * BLOCK
    ri, rc = tl.arange(0, BI), r + tl.arange(0, BLOCK)
    at, square = tile * C * I, tile * C * C
    dZ = look_back(
        q + at, a + at, z + at, d_scores + square, d_asked + at, dq + at, r, ri, I, C, BI, EARLY, EARLY, PRECISION
    )
    dA = seen_from(q + at, z + at, d_scores + square, r, ri, I, C, BI, EARLY, EARLY, PRECISION)
    dE = tl.zeros([BLOCK, BI], tl.float32)
    if EARLY:
        dE = dZ
        dZ = tl.zeros([BLOCK, BI], tl.float32)
    if KEYS:
        more = look_back(
            k + at, a + at, z + at, d_coupling + square, d_predicted + at, dk + at, r, ri, I, C, BI, KEYS_EARLY, 1,
            PRECISION,
        )  # fmt: skip
        dA += seen_from(k + at, z + at, d_coupling + square, r, ri, I, C, BI, KEYS_EARLY, 1, PRECISION)
        if KEYS_EARLY:
            dE += more
        else:
            dZ += more
    A, last = rows(a + at, rc, ri, I), row(z + at, C - 1, ri, I)
    left = rows(d_written + at, rc, ri, I) * tl.exp(last[None, :] - rows(z + at, rc, ri, I))
    dA -= left
    put(da + at, rc, ri, I, dA)
    put(dz + at, rc, ri, I, dZ - A * dA)
    if EARLY or KEYS_EARLY:
        put(dz_early + at, rc, ri, I, dE)
    tl.store(d_last + pid * I + ri, -tl.sum(A * left, 0), mask=ri < I)


@triton.jit
def inverse(coupling, out, C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """The inverse of ``1 + coupling``, strictly lower-triangular, by joining ever larger diagonal blocks."""
    at = tl.program_id(0).to(tl.int64) * C * C
    rc = tl.arange(0, C)
    place = rc[:, None] * C + rc[None, :]
    L = tl.load(coupling + at + place)
    pair = (rc[:, None] // 2 == rc[None, :] // 2) & (rc[:, None] > rc[None, :])
    X = tl.where(rc[:, None] == rc[None, :], 1.0, 0.0) - tl.where(pair, L, 0.0)
    for level in range(1, LEVELS):
        size = 1 << level
        below = (rc[:, None] // (2 * size) == rc[None, :] // (2 * size)) & (rc[:, None] // size > rc[None, :] // size)
        inner = tl.dot(tl.where(below, L, 0.0), X, input_precision=PRECISION)
        X -= tl.dot(X, inner, input_precision=PRECISION)
    tl.store(out + at + place, X.to(out.dtype.element_ty))

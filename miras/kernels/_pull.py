"""Triton: gradients of one chunk's queries, keys and coefficients, all chunks at once."""

import triton
import triton.language as tl

from miras.kernels._scan import load_stack, load_tile, product, store_tile


@triton.jit
def pull(
    q, k, lr, rows, pairs, into, key_rows, key_pairs, slope, states, errors, rates, do,
    d_states, d_predictions, d_rights, d_norms,
    dq, dk, d_rates, d_rows, d_pairs, d_into, d_mix, d_key_rows, d_key_pairs, d_slope,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, so_b, so_h, so_t,
    H, T, C, NT, I, O,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BOUND: tl.constexpr, SOLVE: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """One program a chunk. The scores' gradient and its transpose are formed apart: an accumulator must not be transposed."""
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    b, h = i // H, i % H
    rc, ri = tl.arange(0, BC), tl.arange(0, BI)
    keep_i = ri < I
    size = I * O
    keep = rc < tl.minimum(T - n * C, C)
    token = i * T + n * C
    K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
    Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
    Kf, Qf = K.to(tl.float32), Q.to(tl.float32)
    rate = tl.load((rates if BOUND else lr) + token + rc, mask=keep, other=0.0)
    dQ, dK = tl.zeros([BC, BI], tl.float32), tl.zeros([BC, BI], tl.float32)
    X, XT = tl.zeros([BC, BC], tl.float32), tl.zeros([BC, BC], tl.float32)
    E, ET = tl.zeros([BC, BC], tl.float32), tl.zeros([BC, BC], tl.float32)
    d_rate, zero = tl.zeros([BC], tl.float32), tl.zeros([BI], tl.float32)
    d_row, d_share, d_key_row, d_mixes = (), (), (), ()
    for j in tl.static_range(J):
        d_row, d_share, d_key_row = d_row + (d_rate,), d_share + (d_rate,), d_key_row + (d_rate,)  # noqa: RUF005
        for a in tl.static_range(J):
            d_mixes = d_mixes + (zero,)  # noqa: RUF005
    for block in range(0, NV):
        rv = block * BV + tl.arange(0, BV)
        keep_v = rv < O
        Y = load_tile(do + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, FULL)
        D = load_tile(errors + token * O, rc, O, rv, keep, keep_v, FULL)
        P = load_tile(d_predictions + token * O, rc, O, rv, keep, keep_v, FULL)
        X += product(Y, tl.trans(D), PRECISION)
        XT += product(D, tl.trans(Y), PRECISION)
        if SOLVE:
            R = load_tile(d_rights + token * O, rc, O, rv, keep, keep_v, FULL)
            E += product(R, tl.trans(D), PRECISION)
            ET += product(D, tl.trans(R), PRECISION)
        before = load_stack(states + at * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
        after = load_stack(d_states + at * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
        new_row, new_share, new_key_row, new_mixes = (), (), (), ()
        for j in tl.static_range(J):
            S = before[j]
            back = product(Y, tl.trans(S), PRECISION)
            dQ += back * tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)[:, None]
            new_row = new_row + (d_row[j] + tl.sum(back * Qf, 1),)  # noqa: RUF005
            if SOLVE:
                back = product(P, tl.trans(S), PRECISION)
                dK += back * tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)[:, None]
                new_key_row = new_key_row + (d_key_row[j] + tl.sum(back * Kf, 1),)  # noqa: RUF005
            elif j == 0:
                dK += product(P, tl.trans(S), PRECISION)
        for a in tl.static_range(J):
            back = product(D, tl.trans(after[a]), PRECISION)
            dK += back * (rate * tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0))[:, None]
            new_share = new_share + (d_share[a] + tl.sum(back * Kf, 1),)  # noqa: RUF005
            for j in tl.static_range(J):
                both = tl.sum(after[a].to(tl.float32) * before[j].to(tl.float32), 1)
                new_mixes = new_mixes + (d_mixes[a * J + j] + both,)  # noqa: RUF005
        d_row, d_share, d_mixes = new_row, new_share, new_mixes
        if SOLVE:
            d_key_row = new_key_row
    for j in tl.static_range(J):
        tl.store(d_rows + (at * J + j) * C + rc, d_row[j], mask=rc < C)
        tl.store(d_into + (at * J + j) * C + rc, rate * d_share[j], mask=rc < C)
        d_rate += d_share[j] * tl.load(into + (at * J + j) * C + rc, mask=keep, other=0.0)
        if SOLVE:
            tl.store(d_key_rows + (at * J + j) * C + rc, d_key_row[j], mask=rc < C)
        for a in tl.static_range(J):
            tl.store(d_mix + (at * J + j) * J + a, tl.sum(d_mixes[j * J + a], 0))

    # coefficients of tokens that do not exist get zeros
    within, whole = keep[:, None] & keep[None, :], (rc < C)[:, None] & (rc < C)[None, :]
    straight, across = at * C * C + rc[:, None] * C + rc[None, :], at * C * C + rc[None, :] * C + rc[:, None]
    M, MT = tl.load(pairs + straight, mask=within, other=0.0), tl.load(pairs + across, mask=within, other=0.0)
    scores = -product(Q, tl.trans(K), PRECISION) * X
    tl.store(d_pairs + straight, scores * rate[None, :], mask=whole)
    d_rate += tl.sum(scores * M, 0)
    dQ -= product((X * M * rate[None, :]).to(DT), K, PRECISION)
    dK -= product((XT * MT * rate[:, None]).to(DT), Q, PRECISION)
    if SOLVE:
        M, MT = tl.load(key_pairs + straight, mask=within, other=0.0), tl.load(key_pairs + across, mask=within, other=0.0)
        steep = tl.load(slope + token + rc, mask=keep, other=0.0)
        scores = -product(K, tl.trans(K), PRECISION) * E
        tl.store(d_key_pairs + straight, scores * steep[:, None] * rate[None, :], mask=whole)
        scores *= M
        d_rate += tl.sum(scores * steep[:, None], 0)
        tl.store(d_slope + token + rc, tl.sum(scores * rate[None, :], 1), mask=keep)
        dK -= product((E * M * steep[:, None] * rate[None, :]).to(DT), K, PRECISION)
        dK -= product((ET * MT * steep[None, :] * rate[:, None]).to(DT), K, PRECISION)
    if BOUND:
        dK += Kf * tl.load(d_norms + token + rc, mask=keep, other=0.0)[:, None]
    else:
        tl.store(d_rates + token + rc, d_rate, mask=keep)
    store_tile(dq + token * I, rc, I, ri, keep, keep_i, dQ, FULL)
    store_tile(dk + token * I, rc, I, ri, keep, keep_i, dK, FULL)


@triton.jit
def inverse(
    k, lr, slope, key_pairs, out, sk_b, sk_h, sk_t, H, T, C, NT, I,
    BC: tl.constexpr, LEVELS: tl.constexpr, BI: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The inverse of ``1 + L``, ``L[t, s] = slope_t key_pairs_ts (k_t . k_s) lr_s``, by joining ever larger diagonal blocks.

    Two blocks with inverses x and z and the block l below the first join to an inverse with ``-z l x`` there: as stable
    as forward substitution, but all in products.
    """
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    b, h = i // H, i % H
    rc, ri = tl.arange(0, BC), tl.arange(0, BI)
    keep_i, keep = ri < I, rc < tl.minimum(T - n * C, C)
    token = i * T + n * C
    K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
    M = load_tile(key_pairs + at * C * C, rc, C, rc, keep, keep, FULL)
    rate = tl.load(lr + token + rc, mask=keep, other=0.0)
    steep = tl.load(slope + token + rc, mask=keep, other=0.0)
    L = product(K, tl.trans(K), PRECISION) * M * steep[:, None] * rate[None, :]
    pair = (rc[:, None] // 2 == rc[None, :] // 2) & (rc[:, None] > rc[None, :])
    X = tl.where(rc[:, None] == rc[None, :], 1.0, 0.0) - tl.where(pair, L, 0.0)
    for level in range(1, LEVELS):
        size = 1 << level
        below = (rc[:, None] // (2 * size) == rc[None, :] // (2 * size)) & (rc[:, None] // size > rc[None, :] // size)
        X -= product(X, product(tl.where(below, L, 0.0), X, PRECISION), PRECISION)
    store_tile(out + at * C * C, rc, C, rc, keep, keep, X, FULL)

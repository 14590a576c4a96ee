"""Triton: gradients of queries, keys and coefficients, all tiles at once.

Two kernels, one for tokens that read and one for tokens that write; where every token sees those before it, keys read too.
A matrix of scores and its transpose are formed apart: an accumulator must not be transposed (Triton 3.4-3.7.0 on Hopper).
"""

import triton
import triton.language as tl

from miras.kernels._coefficients.formed import formed, store_gradients
from miras.kernels._matrix.scan import load_stack, load_tile, load_transposed, product, store_tile
from miras.kernels._shared.blocks import inverted
from miras.kernels._shared.links import committed, replaced, weights


@triton.jit
def readers(
    x, k, rate, rows, pairs, slope, states, errors, upstream,
    dx, d_rates, d_rows, d_pairs, d_slope,
    sx_b, sx_h, sx_t, sk_b, sk_h, sk_t, su_b, su_h, su_t,
    H, T, C, NT, I, O,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    KEYS: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
    vector_states=None, VECTOR: tl.constexpr = False, FORM: tl.constexpr = 0,
):  # fmt: skip
    """``y = sum_j rows_j (x S_j) - (pairs * x k^T) u``: gradients of x, rows, pairs and, through u, of the rate.

    KEYS adds to the gradient of the rate what queries left there, and finds that of the slope their upstream was scaled with.
    """
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    b, h = i // H, i % H
    rc, ri = tl.arange(0, BC), tl.arange(0, BI)
    keep_i = ri < I
    size = I * O
    keep = rc < tl.minimum(T - n * C, C)
    token = i * T + n * C
    Q = load_tile(x + b * sx_b + h * sx_h + n * C * sx_t, rc, sx_t, ri, keep, keep_i, FULL)
    dQ, X = tl.zeros([BC, BI], tl.float32), tl.zeros([BC, BC], tl.float32)
    zero = tl.zeros([BC], tl.float32)
    d_row = ()
    for j in tl.static_range(J):
        d_row = d_row + (zero,)
    for block in range(0, NV):
        rv = block * BV + tl.arange(0, BV)
        keep_v = rv < O
        Y = load_tile(upstream + b * su_b + h * su_h + n * C * su_t, rc, su_t, rv, keep, keep_v, FULL)
        D = load_tile(errors + token * O, rc, O, rv, keep, keep_v, FULL)
        X = tl.dot(Y, tl.trans(D), X, input_precision=PRECISION)
        stack = load_stack(states + at * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
        new = ()
        for j in tl.static_range(J):
            row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
            scaled = (Y.to(tl.float32) * row[:, None]).to(DT)
            dQ = tl.dot(scaled, tl.trans(stack[j]), dQ, input_precision=PRECISION)
            seen = product(Q, stack[j], PRECISION)
            if VECTOR:
                seen += tl.load(vector_states + (at * J + j) * O + rv, mask=keep_v, other=0.0)[None, :]
            new = new + (d_row[j] + tl.sum(Y.to(tl.float32) * seen, 1),)
        d_row = new
    for j in tl.static_range(J):
        tl.store(d_rows + (at * J + j) * C + rc, d_row[j], mask=rc < C)
    K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
    if FORM == 0:
        M = load_tile(pairs + at * C * C, rc, C, rc, keep, keep, FULL)
    else:
        M = formed(pairs, at, rc, C, keep, FORM, KEYS, False, DT)
    lr = tl.load(rate + token + rc, mask=keep, other=0.0)
    dQ = tl.dot((-X * M * lr[None, :]).to(DT), K, dQ, input_precision=PRECISION)
    store_tile(dx + token * I, rc, I, ri, keep, keep_i, dQ, FULL)
    if VECTOR:
        X *= -(product(Q, tl.trans(K), PRECISION) + 1.0)
    else:
        X *= -product(Q, tl.trans(K), PRECISION)
    if FORM == 0:
        whole = (rc < C)[:, None] & (rc < C)[None, :]  # coefficients of tokens that do not exist get zeros
        tl.store(d_pairs + at * C * C + rc[:, None] * C + rc[None, :], (X * lr[None, :]).to(DT), mask=whole)
    else:
        store_gradients(d_pairs, at, rc, C, X * lr[None, :], M, FORM)
    X *= M
    d_rate = tl.sum(X, 0)
    if KEYS:
        d_rate += tl.load(d_rates + token + rc, mask=keep, other=0.0)
        steep = tl.load(slope + token + rc, mask=keep, other=1.0)
        tl.store(d_slope + token + rc, tl.sum(X * lr[None, :], 1) / steep, mask=keep)
    tl.store(d_rates + token + rc, d_rate, mask=keep)


@triton.jit
def transposed_scores(
    X, pairs, at, rc, C, keep, rate, FORM: tl.constexpr, STRICT: tl.constexpr, FULL: tl.constexpr, DT: tl.constexpr
):
    if FORM == 0:
        M = load_transposed(pairs + at * C * C, rc, C, keep, FULL)
    else:
        M = formed(pairs, at, rc, C, keep, FORM, STRICT, True, DT)
    return (-X * M * rate[:, None]).to(DT)


@triton.jit
def writers(
    q, k, rate, pairs, into, key_pairs, states, errors, do, d_states, d_predictions, d_norms,
    dk, d_rates, d_into, d_mix,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, so_b, so_h, so_t,
    H, T, C, NT, I, O,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BOUND: tl.constexpr, SOLVE: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
    vector_states=None, d_vector_states=None, VECTOR: tl.constexpr = False, FORM: tl.constexpr = 0,
    dv=None, SHIFTED: tl.constexpr = False,
    dq=None, LINK: tl.constexpr = None, LINK_CONSTANTS: tl.constexpr = None, CEILING: tl.constexpr = None,
    level=None, LEVEL: tl.constexpr = 0,
):  # fmt: skip
    """Gradients of keys as what is written and (without SOLVE) of what the anchor predicts from them, of into, mix and rate.

    With SOLVE it adds to the gradient that keys already have as readers. With LINK queries read what keys do: theirs too.
    """
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    b, h = i // H, i % H
    rc, ri = tl.arange(0, BC), tl.arange(0, BI)
    keep_i = ri < I
    size = I * O
    keep = rc < tl.minimum(T - n * C, C)
    token = i * T + n * C
    K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
    lr = tl.load(rate + token + rc, mask=keep, other=0.0)
    dK, X = tl.zeros([BC, BI], tl.float32), tl.zeros([BC, BC], tl.float32)
    E, dQ = X, dK
    zero, of_rows = tl.zeros([BC], tl.float32), tl.zeros([BI], tl.float32)
    d_share, d_mixes = (), ()
    for j in tl.static_range(J):
        d_share = d_share + (zero,)
        for a in tl.static_range(J):
            d_mixes = d_mixes + (of_rows,)
    for block in range(0, NV):
        rv = block * BV + tl.arange(0, BV)
        keep_v = rv < O
        Y = load_tile(do + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, FULL)
        D = load_tile(errors + token * O, rc, O, rv, keep, keep_v, FULL)
        P = load_tile(d_predictions + token * O, rc, O, rv, keep, keep_v, FULL)
        if LINK is None:
            X = tl.dot(D, tl.trans(Y), X, input_precision=PRECISION)
        before = load_stack(states + at * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
        after = load_stack(d_states + at * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
        if SOLVE:
            E = tl.dot(D, tl.trans(P), E, input_precision=PRECISION)
        elif LINK is not None:
            if CEILING is not None:
                before = committed(before, n, CEILING, J)
            linked = weights(before[0], keep_i, keep_v, level, at, LINK, LINK_CONSTANTS, LEVEL, FULL)
            if LEVEL == 2:
                before = replaced(before, linked, J)
            W = linked.to(DT)
            dK = tl.dot(P, tl.trans(W), dK, input_precision=PRECISION)
            dQ = tl.dot(Y, tl.trans(W), dQ, input_precision=PRECISION)
        else:
            dK = tl.dot(P, tl.trans(before[0]), dK, input_precision=PRECISION)
        new_share, new_mixes = (), ()
        for a in tl.static_range(J):
            share = lr * tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
            scaled = (D.to(tl.float32) * share[:, None]).to(DT)
            dK = tl.dot(scaled, tl.trans(after[a]), dK, input_precision=PRECISION)
            seen = product(K, after[a], PRECISION)
            if VECTOR:
                beyond = tl.load(d_vector_states + (at * J + a) * O + rv, mask=keep_v, other=0.0)
                seen += beyond[None, :]
            new_share = new_share + (d_share[a] + tl.sum(D.to(tl.float32) * seen, 1),)
            for j in tl.static_range(J):
                both = tl.sum(after[a].to(tl.float32) * before[j].to(tl.float32), 1)
                if VECTOR:
                    w = tl.load(vector_states + (at * J + j) * O + rv, mask=keep_v, other=0.0)
                    both += tl.where(ri == 0, tl.sum(w * beyond, 0), 0.0)
                new_mixes = new_mixes + (d_mixes[a * J + j] + both,)
        d_share, d_mixes = new_share, new_mixes
    if LINK is not None:
        d_rate = zero
    else:
        d_rate = tl.load(d_rates + token + rc, mask=keep, other=0.0)
    for a in tl.static_range(J):
        tl.store(d_into + (at * J + a) * C + rc, lr * d_share[a], mask=rc < C)
        d_rate += d_share[a] * tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
        for j in tl.static_range(J):
            tl.store(d_mix + (at * J + a) * J + j, tl.sum(d_mixes[a * J + j], 0))
    if not BOUND:
        tl.store(d_rates + token + rc, d_rate, mask=keep)
    if LINK is not None:
        store_tile(dq + token * I, rc, I, ri, keep, keep_i, dQ, FULL)
    else:
        Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
        scores = transposed_scores(X, pairs, at, rc, C, keep, lr, FORM, False, FULL, DT)
        dK = tl.dot(scores, Q, dK, input_precision=PRECISION)
    if SOLVE:
        scores = transposed_scores(E, key_pairs, at, rc, C, keep, lr, FORM, True, FULL, DT)
        dK = tl.dot(scores, K, dK, input_precision=PRECISION)
        dK += load_tile(dk + token * I, rc, I, ri, keep, keep_i, FULL).to(tl.float32)
    if SHIFTED:
        dK -= load_tile(dv + token * O, rc, O, ri, keep, keep_i, FULL).to(tl.float32)
    if BOUND:
        dK += K.to(tl.float32) * tl.load(d_norms + token + rc, mask=keep, other=0.0)[:, None]
    store_tile(dk + token * I, rc, I, ri, keep, keep_i, dK, FULL)


@triton.jit
def inverse(
    k, lr, slope, key_pairs, out, sk_b, sk_h, sk_t, H, T, C, NT, I,
    BC: tl.constexpr, LEVELS: tl.constexpr, BI: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, FORM: tl.constexpr = 0,
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
    if FORM == 0:
        M = load_tile(key_pairs + at * C * C, rc, C, rc, keep, keep, FULL)
    else:
        M = formed(key_pairs, at, rc, C, keep, FORM, True, False, tl.float32)
    rate = tl.load(lr + token + rc, mask=keep, other=0.0)
    steep = tl.load(slope + token + rc, mask=keep, other=0.0)
    L = product(K, tl.trans(K), PRECISION) * M * steep[:, None] * rate[None, :]
    X = inverted(L, rc, BC, LEVELS, PRECISION)
    store_tile(out + at * C * C, rc, C, rc, keep, keep, X, FULL)

"""Triton: gradients of a matrix memory from the last tile to the first; letters as in `miras.kernels._matrix.scan`."""

import triton
import triton.language as tl

from miras.kernels._coefficients.formed import formed
from miras.kernels._matrix.scan import (
    load_stack,
    load_tile,
    load_transposed,
    load_vectors,
    met,
    next_vectors,
    product,
    store_stack,
    store_tile,
    store_vectors,
)
from miras.kernels._mlp.meetings import enter
from miras.kernels._mlp.parts import error, error_vjp
from miras.kernels._shared.links import committed, weights_vjp


@triton.jit
def reverse(
    q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solve, errors, predictions, rates, do, d_end,
    d_states, d_predictions, dv, d_gate, d_lr, d_inverse, d_norms, d_start,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, so_b, so_h, so_t, sg_b, sg_h, sg_t,
    H, T, C, NT, I, O, BHT,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BOUND: tl.constexpr, SOLVE: tl.constexpr, GATE: tl.constexpr, LIMIT: tl.constexpr,
    VJP: tl.constexpr, CONSTANTS: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
    d_vectors=None, d_vector_states=None, d_vector_start=None, d_last=None, RESIDUAL: tl.constexpr = None,
    VECTOR: tl.constexpr = False, NORM: tl.constexpr = 0.0, LAST: tl.constexpr = False, FORM: tl.constexpr = 0,
    SHIFTED: tl.constexpr = False, squares=None, tickets=None, told=None, MEET: tl.constexpr = False,
    states=None, LINK_VJP: tl.constexpr = None, LINK_CONSTANTS: tl.constexpr = None, CEILING: tl.constexpr = None,
    level=None, d_level=None, LEVEL: tl.constexpr = 0,
):  # fmt: skip
    """Gradients of the state from the last chunk to the first, and of the errors on the way."""
    if MEET:
        i, j0, arrivals = enter(tickets, NV)
        told += i * 2 * NV * C
    else:
        pid = tl.program_id(0).to(tl.int64)
        j0, i = pid % NV, pid // NV
    b, h = i // H, i % H
    rc, ri, rv = tl.arange(0, BC), tl.arange(0, BI), j0 * BV + tl.arange(0, BV)
    keep_i, keep_v = ri < I, rv < O
    size = I * O
    stack = load_stack(d_end + i * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
    if VECTOR:
        beside = load_vectors(d_vectors + i * J * O, O, rv, keep_v, J)
    for step in range(0, NT):
        n = i * 0 + (NT - 1 - step)
        left = tl.minimum(T - n * C, C)
        keep = rc < left
        at, token = i * NT + n, i * T + n * C
        store_stack(d_states + at * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
        K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
        Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
        Y = load_tile(do + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, FULL)
        if LINK_VJP is not None:  # no token reads another of its chunk
            dU = tl.zeros([BC, BV], tl.float32)
        else:
            # the transpose is loaded and its product formed again: an accumulator must not be transposed
            if FORM == 0:
                M = load_transposed(pairs + at * C * C, rc, C, keep, FULL)
            else:
                M = formed(pairs, at, rc, C, keep, FORM, False, True, DT)
            if VECTOR:
                M = ((product(K, tl.trans(Q), PRECISION) + 1.0) * M).to(DT)
            else:
                M = (product(K, tl.trans(Q), PRECISION) * M).to(DT)
            dU = -product(M, Y, PRECISION)
        for a in tl.static_range(J):
            share = tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
            dU += product(K, stack[a].to(DT), PRECISION) * share[:, None]
            if VECTOR:
                dU += beside[a][None, :] * share[:, None]
        rate = tl.load(lr + token + rc, mask=keep, other=0.0)
        if BOUND:
            D = load_tile(errors + token * O, rc, O, rv, keep, keep_v, FULL).to(tl.float32)
            bounded = tl.load(rates + token + rc, mask=keep, other=0.0)
            dD = dU * bounded[:, None]
            Kf = K.to(tl.float32)
            inv = tl.load(inverse + token + rc, mask=keep, other=0.0)
            kk, along = tl.sum(Kf * Kf, 1), tl.sum(dU * D, 1)
            if MEET:
                dd, mine = tl.load(squares + token + rc, mask=keep, other=0.0), keep & (j0 == 0)
                along = met(along, told, arrivals, step, j0, C, NV, BC)
            else:
                dd, mine = tl.sum(D * D, 1), keep
            norm = tl.sqrt(kk * dd + 1e-30)
            shrink = 1 + norm * rate * inv
            shrink = along / (shrink * shrink)
            tl.store(d_lr + token + rc, shrink, mask=mine)
            shrink = shrink * rate * rate
            tl.store(d_inverse + token + rc, -shrink * norm, mask=mine)
            d_norm = -shrink * inv / norm
            tl.store(d_norms + token + rc, d_norm * dd, mask=mine)
            dD += (d_norm * kk)[:, None] * D
        else:
            dD = dU * rate[:, None]
        if LAST:
            there = keep[:, None] & (keep_v & (n == NT - 1))[None, :]
            dD += tl.load(d_last + i * C * O + rc[:, None] * O + rv[None, :], mask=there, other=0.0)
        if SOLVE:
            X = load_transposed(solve + at * C * C, rc, C, keep, FULL)
            dD = product(X, dD.to(DT), PRECISION)
        V = load_tile(v + b * sv_b + h * sv_h + n * C * sv_t, rc, sv_t, rv, keep, keep_v, FULL).to(tl.float32)
        if SHIFTED:
            V -= load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, rv, keep, keep_v, FULL).to(tl.float32)
            V = V.to(DT).to(tl.float32)
        P = load_tile(predictions + token * O, rc, O, rv, keep, keep_v, FULL).to(tl.float32)
        if GATE == 2:
            G = load_tile(gate + b * sg_b + h * sg_h + n * C * sg_t, rc, sg_t, rv, keep, keep_v, FULL)
        elif GATE == 1:
            G = tl.load(gate + token + rc, mask=keep, other=0.0)[:, None]
        else:
            G = 0.0
        if NORM > 0:
            D, normed, scale, e = error(P, P, V, G, RESIDUAL, CONSTANTS, True, False, NORM)
            dP, _answer, dV, dG = error_vjp(dD, D, normed, scale, e, P, V, G, VJP, CONSTANTS, True, False)
        else:
            dP, dV, dG = VJP(P, V, G, dD, CONSTANTS)
        store_tile(d_predictions + token * O, rc, O, rv, keep, keep_v, dP, FULL)
        store_tile(dv + token * O, rc, O, rv, keep, keep_v, dV, FULL)
        if GATE == 2:
            store_tile(d_gate + token * O, rc, O, rv, keep, keep_v, dG, FULL)
        elif GATE == 1:
            tl.store(d_gate + j0 * BHT + token + rc, tl.sum(dG, 1), mask=keep)
        KT, QT, Yf = tl.trans(K), tl.trans(Q), Y.to(tl.float32)
        if VECTOR:
            store_vectors(d_vector_states + at * J * O, O, rv, keep_v, beside, J)
            after = next_vectors(rows, mix, at, rc, C, keep, Yf, beside, J, True)
            beside = (after[0] + tl.sum(dP, 0),)
            for j in tl.static_range(1, J):
                beside = beside + (after[j],)
        new = ()
        for j in tl.static_range(J):
            if LINK_VJP is None:
                row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                W = product(QT, (Yf * row[:, None]).to(DT), PRECISION)
            elif j == 0:
                W = product(QT, Y, PRECISION)
            else:
                W = tl.zeros([BI, BV], tl.float32)
            if SOLVE:
                row = tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                W += product(KT, (dP * row[:, None]).to(DT), PRECISION)
            elif j == 0:
                W += product(KT, dP.to(DT), PRECISION)
            if (LINK_VJP is not None and j == 0) and LEVEL < 2:
                raw = load_tile(states + at * J * size, ri, O, rv, keep_i, keep_v, FULL)
                begun = (raw,)
                if CEILING is not None:
                    begun = committed(begun, n, CEILING, 1)
                W = weights_vjp(
                    begun[0], W, keep_i, keep_v, level, d_level, at, at * NV + j0, LINK_VJP, LINK_CONSTANTS, LEVEL, FULL,
                )  # fmt: skip
            for a in tl.static_range(J):
                W += tl.load(mix + (at * J + a) * J + j) * stack[a]
            if LIMIT > 0:
                W = tl.minimum(tl.maximum(W, -LIMIT), LIMIT)
            if CEILING is not None and j == 0:
                W = tl.where((n > 0) & (raw > CEILING), 0.0, W)
            if LEVEL == 2 and j == 0:  # what was read went on
                raw = load_tile(states + at * J * size, ri, O, rv, keep_i, keep_v, FULL)
                W = weights_vjp(
                    raw, W, keep_i, keep_v, level, d_level, at, at * NV + j0, LINK_VJP, LINK_CONSTANTS, LEVEL, FULL,
                )  # fmt: skip
            new = new + (W,)
        stack = new
    store_stack(d_start + i * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
    if VECTOR:
        store_vectors(d_vector_start + i * J * O, O, rv, keep_v, beside, J)

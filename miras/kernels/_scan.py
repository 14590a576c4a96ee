"""Triton: a matrix memory over a sequence, one program for a head and a block of value channels.

State before a chunk is a stack of J = 1 + K matrices: the memory and the slots of the filter. In a chunk, with rows
``k_t, v_t, q_t`` and coefficients that depend on gates alone (see `miras.engine.coefficients`):

    p = k A                        or, token by token,  p_t = sum_j key_rows_jt k_t S_j  and  d = solve residual(p)
    d = residual(p, v)             u_t = rate_t d_t
    y = sum_j rows_j (q S_j) - (pairs * q k^T) u
    S_i <- sum_j mix_ij S_j + k^T (into_i * u)

Shapes: BC chunk, BI key channels, BV a block of value channels, each a power of two that covers what there is.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, rows, stride, columns, keep_rows, keep_columns, FULL: tl.constexpr):
    """Rows of a strided matrix, zero outside; FULL promises that there is no outside."""
    where = pointer + rows[:, None] * stride + columns[None, :]
    if FULL:
        return tl.load(where)
    return tl.load(where, mask=keep_rows[:, None] & keep_columns[None, :], other=0.0)


@triton.jit
def load_transposed(pointer, r, stride, keep, FULL: tl.constexpr):
    """The transpose of a square tile, straight from memory."""
    where = pointer + r[None, :] * stride + r[:, None]
    if FULL:
        return tl.load(where)
    return tl.load(where, mask=keep[:, None] & keep[None, :], other=0.0)


@triton.jit
def store_tile(pointer, rows, stride, columns, keep_rows, keep_columns, x, FULL: tl.constexpr):
    where = pointer + rows[:, None] * stride + columns[None, :]
    x = x.to(pointer.dtype.element_ty)
    if FULL:
        tl.store(where, x)
    else:
        tl.store(where, x, mask=keep_rows[:, None] & keep_columns[None, :])


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_stack(pointer, size, ri, O, rv, keep_i, keep_v, J: tl.constexpr, FULL: tl.constexpr):
    """J matrices, one after another."""
    stack = (load_tile(pointer, ri, O, rv, keep_i, keep_v, FULL),)
    for j in tl.static_range(1, J):
        stack = stack + (load_tile(pointer + j * size, ri, O, rv, keep_i, keep_v, FULL),)
    return stack


@triton.jit
def store_stack(pointer, size, ri, O, rv, keep_i, keep_v, stack, J: tl.constexpr, FULL: tl.constexpr):
    for j in tl.static_range(J):
        store_tile(pointer + j * size, ri, O, rv, keep_i, keep_v, stack[j], FULL)


@triton.jit
def rate_of(lr, inverse, K, D):
    """The learning rate under the bound of the step's norm, as `miras.engine.chunked.weigh`."""
    K = K.to(tl.float32)
    norm = tl.sqrt(tl.sum(K * K, 1) * tl.sum(D * D, 1) + 1e-30)
    return lr / (1 + norm * lr * inverse)


@triton.jit
def scan(
    q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solve, start,
    o, end, checkpoints, states, errors, predictions, rates,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, so_b, so_h, so_t, sg_b, sg_h, sg_t,
    H, T, C, NT, I, O, COUNT, SEGMENTS, STRETCHES,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    READ: tl.constexpr, CHECK: tl.constexpr, SAVE: tl.constexpr, BOUND: tl.constexpr, SOLVE: tl.constexpr,
    GATE: tl.constexpr, RESIDUAL: tl.constexpr, CONSTANTS: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Forward over STRETCHES of COUNT tiles. READ writes outputs and the end, CHECK the stack before every stretch.

    SAVE writes what backward needs instead: then every one of SEGMENTS programs does one stretch, from its checkpoint.
    """
    pid = tl.program_id(0).to(tl.int64)
    j0, segment, i = pid % NV, (pid // NV) % SEGMENTS, pid // (NV * SEGMENTS)
    b, h = i // H, i % H
    rc, ri, rv = tl.arange(0, BC), tl.arange(0, BI), j0 * BV + tl.arange(0, BV)
    keep_i, keep_v = ri < I, rv < O
    size = I * O
    stack = load_stack(start + (i * SEGMENTS + segment) * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
    for stretch in range(0, STRETCHES):
        first = (segment + stretch) * COUNT
        if CHECK:
            place = checkpoints + (i * STRETCHES + stretch) * J * size
            store_stack(place, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
        for step in range(0, tl.minimum(COUNT, NT - first).to(tl.int32)):
            n = first + step
            left = tl.minimum(T - n * C, C)
            keep = rc < left
            at, token = i * NT + n, i * T + n * C
            K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
            V = load_tile(v + b * sv_b + h * sv_h + n * C * sv_t, rc, sv_t, rv, keep, keep_v, FULL).to(tl.float32)
            rate = tl.load(lr + token + rc, mask=keep, other=0.0)
            if GATE == 2:
                G = load_tile(gate + b * sg_b + h * sg_h + n * C * sg_t, rc, sg_t, rv, keep, keep_v, FULL)
            elif GATE == 1:
                G = tl.load(gate + token + rc, mask=keep, other=0.0)[:, None]
            else:
                G = 0.0
            P = product(K, stack[0].to(DT), PRECISION)
            if SOLVE:
                P = P * tl.load(key_rows + at * J * C + rc, mask=keep, other=0.0)[:, None]
                for j in tl.static_range(1, J):
                    row = tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                    P += product(K, stack[j].to(DT), PRECISION) * row[:, None]
                X = load_tile(solve + at * C * C, rc, C, rc, keep, keep, FULL)
                D = product(X, RESIDUAL(P, V, G, CONSTANTS).to(DT), PRECISION)
            else:
                D = RESIDUAL(P, V, G, CONSTANTS)
            if BOUND:
                rate = rate_of(rate, tl.load(inverse + token + rc, mask=keep, other=0.0), K, D)
            U = D * rate[:, None]
            if SAVE:
                store_stack(states + at * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
                store_tile(errors + token * O, rc, O, rv, keep, keep_v, D, FULL)
                store_tile(predictions + token * O, rc, O, rv, keep, keep_v, P, FULL)
                if BOUND:
                    tl.store(rates + token + rc, rate, mask=keep)
            if READ:
                Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
                M = load_tile(pairs + at * C * C, rc, C, rc, keep, keep, FULL)
                M = (product(Q, tl.trans(K), PRECISION) * M).to(DT)
                row = tl.load(rows + at * J * C + rc, mask=keep, other=0.0)
                Y = product(Q, stack[0].to(DT), PRECISION) * row[:, None]
                for j in tl.static_range(1, J):
                    row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                    Y += product(Q, stack[j].to(DT), PRECISION) * row[:, None]
                Y -= product(M, U.to(DT), PRECISION)
                store_tile(o + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, Y, FULL)
            KT = tl.trans(K)
            new = ()
            for a in tl.static_range(J):
                share = tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
                W = product(KT, (U * share[:, None]).to(DT), PRECISION)
                for j in tl.static_range(J):
                    W += tl.load(mix + (at * J + a) * J + j) * stack[j]
                new = new + (W,)
            stack = new
    if READ:
        store_stack(end + i * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)


@triton.jit
def reverse(
    q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, solve, errors, predictions, rates, do, d_end,
    d_states, d_predictions, dv, d_gate, d_lr, d_inverse, d_norms, d_start,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, so_b, so_h, so_t, sg_b, sg_h, sg_t,
    H, T, C, NT, I, O, BHT,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BOUND: tl.constexpr, SOLVE: tl.constexpr, GATE: tl.constexpr, LIMIT: tl.constexpr,
    VJP: tl.constexpr, CONSTANTS: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Gradients of the state from the last chunk to the first, and of the errors on the way."""
    pid = tl.program_id(0).to(tl.int64)
    j0, i = pid % NV, pid // NV
    b, h = i // H, i % H
    rc, ri, rv = tl.arange(0, BC), tl.arange(0, BI), j0 * BV + tl.arange(0, BV)
    keep_i, keep_v = ri < I, rv < O
    size = I * O
    stack = load_stack(d_end + i * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
    for step in range(0, NT):
        n = i * 0 + (NT - 1 - step)
        left = tl.minimum(T - n * C, C)
        keep = rc < left
        at, token = i * NT + n, i * T + n * C
        store_stack(d_states + at * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
        K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
        Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
        Y = load_tile(do + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, FULL)
        # the transpose is loaded and its product formed again: an accumulator must not be transposed
        M = load_transposed(pairs + at * C * C, rc, C, keep, FULL)
        M = (product(K, tl.trans(Q), PRECISION) * M).to(DT)
        dU = -product(M, Y, PRECISION)
        for a in tl.static_range(J):
            share = tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
            dU += product(K, stack[a].to(DT), PRECISION) * share[:, None]
        rate = tl.load(lr + token + rc, mask=keep, other=0.0)
        if BOUND:
            D = load_tile(errors + token * O, rc, O, rv, keep, keep_v, FULL).to(tl.float32)
            bounded = tl.load(rates + token + rc, mask=keep, other=0.0)
            dD = dU * bounded[:, None]
            Kf = K.to(tl.float32)
            inv = tl.load(inverse + token + rc, mask=keep, other=0.0)
            kk, dd = tl.sum(Kf * Kf, 1), tl.sum(D * D, 1)
            norm = tl.sqrt(kk * dd + 1e-30)
            shrink = 1 + norm * rate * inv
            shrink = tl.sum(dU * D, 1) / (shrink * shrink)
            tl.store(d_lr + token + rc, shrink, mask=keep)
            shrink = shrink * rate * rate
            tl.store(d_inverse + token + rc, -shrink * norm, mask=keep)
            d_norm = -shrink * inv / norm
            tl.store(d_norms + token + rc, d_norm * dd, mask=keep)
            dD += (d_norm * kk)[:, None] * D
        else:
            dD = dU * rate[:, None]
        if SOLVE:
            X = load_transposed(solve + at * C * C, rc, C, keep, FULL)
            dD = product(X, dD.to(DT), PRECISION)
        V = load_tile(v + b * sv_b + h * sv_h + n * C * sv_t, rc, sv_t, rv, keep, keep_v, FULL).to(tl.float32)
        P = load_tile(predictions + token * O, rc, O, rv, keep, keep_v, FULL).to(tl.float32)
        if GATE == 2:
            G = load_tile(gate + b * sg_b + h * sg_h + n * C * sg_t, rc, sg_t, rv, keep, keep_v, FULL)
        elif GATE == 1:
            G = tl.load(gate + token + rc, mask=keep, other=0.0)[:, None]
        else:
            G = 0.0
        dP, dV, dG = VJP(P, V, G, dD, CONSTANTS)
        store_tile(d_predictions + token * O, rc, O, rv, keep, keep_v, dP, FULL)
        store_tile(dv + token * O, rc, O, rv, keep, keep_v, dV, FULL)
        if GATE == 2:
            store_tile(d_gate + token * O, rc, O, rv, keep, keep_v, dG, FULL)
        elif GATE == 1:
            tl.store(d_gate + j0 * BHT + token + rc, tl.sum(dG, 1), mask=keep)
        KT, QT, Yf = tl.trans(K), tl.trans(Q), Y.to(tl.float32)
        new = ()
        for j in tl.static_range(J):
            row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
            W = product(QT, (Yf * row[:, None]).to(DT), PRECISION)
            if SOLVE:
                row = tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                W += product(KT, (dP * row[:, None]).to(DT), PRECISION)
            elif j == 0:
                W += product(KT, dP.to(DT), PRECISION)
            for a in tl.static_range(J):
                W += tl.load(mix + (at * J + a) * J + j) * stack[a]
            if LIMIT > 0:
                W = tl.minimum(tl.maximum(W, -LIMIT), LIMIT)
            new = new + (W,)
        stack = new
    store_stack(d_start + i * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)

"""Triton: a matrix memory over a sequence, one program for a head and a block of value channels.

State before a chunk is a stack of J = 1 + K matrices: the memory and the slots of the filter. In a chunk, with rows
``k_t, v_t, q_t`` and coefficients that depend on gates alone (see `miras.engine.coefficients`):

    p = k A                        or, token by token,  p_t = sum_j key_rows_jt k_t S_j  and  d = solve residual(p)
    d = residual(p, v)             u_t = rate_t d_t
    y = sum_j rows_j (q S_j) - (pairs * q k^T) u
    S_i <- sum_j mix_ij S_j + k^T (into_i * u)

A vector beside the matrix (VECTOR) is one more row of it, whose key and query are one: scores grow by one. With NORM, its eps,
``residual`` takes the layer norm of p, and d is pulled through it; then a block holds all value channels. With LINK, A is the link
of the memory, no memory goes on above CEILING, and queries read A alone; with LEVEL the link has a threshold a chunk, and
with LEVEL 2 memories go on as A.

Shapes: BC chunk, BI key channels, BV a block of value channels, each a power of two that covers what there is.
"""

import triton
import triton.language as tl

from miras.kernels._coefficients.formed import formed
from miras.kernels._mlp.meetings import add_up, arrive, enter, wait
from miras.kernels._mlp.parts import error
from miras.kernels._shared.links import committed, replaced, weights


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
def load_vectors(pointer, O, rv, keep_v, J: tl.constexpr):
    """J vectors, one after another."""
    stack = (tl.load(pointer + rv, mask=keep_v, other=0.0),)
    for j in tl.static_range(1, J):
        stack = stack + (tl.load(pointer + j * O + rv, mask=keep_v, other=0.0),)
    return stack


@triton.jit
def store_vectors(pointer, O, rv, keep_v, stack, J: tl.constexpr):
    for j in tl.static_range(J):
        tl.store(pointer + j * O + rv, stack[j], mask=keep_v)


@triton.jit
def next_vectors(coefficients, mix, at, rc, C, keep, x, stack, J: tl.constexpr, BACK: tl.constexpr):
    """``sum_t c_at x_t + sum_j mix_aj w_j`` for all a, or (BACK) with mix transposed."""
    new = ()
    for a in tl.static_range(J):
        share = tl.load(coefficients + (at * J + a) * C + rc, mask=keep, other=0.0)
        w = tl.sum(x * share[:, None], 0)
        for j in tl.static_range(J):
            if BACK:
                w += tl.load(mix + (at * J + j) * J + a) * stack[j]
            else:
                w += tl.load(mix + (at * J + a) * J + j) * stack[j]
        new = new + (w,)
    return new


@triton.jit
def rate_of(lr, inverse, K, squares):
    """The learning rate under the bound of the step's norm, as `miras.engine.segment.weigh`."""
    K = K.to(tl.float32)
    norm = tl.sqrt(tl.sum(K * K, 1) * squares + 1e-30)
    return lr / (1 + norm * lr * inverse)


@triton.jit
def met(x, told, arrivals, step, j0, C, NV: tl.constexpr, BC: tl.constexpr):
    """The sum of vectors of a tile's tokens over all programs of a head; ``told`` has room for those of two tiles."""
    rc = tl.arange(0, BC)
    told += (step % 2) * NV * C
    tl.store(told + j0 * C + rc, x, mask=rc < C)
    arrive(arrivals)
    wait(arrivals, NV * (step + 1))
    return add_up(told, rc, C, rc < C, NV)


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
    vectors=None, vector_end=None, vector_checkpoints=None, vector_states=None, last=None,
    VECTOR: tl.constexpr = False, NORM: tl.constexpr = 0.0, LAST: tl.constexpr = False, FORM: tl.constexpr = 0,
    SHIFTED: tl.constexpr = False, squares=None, tickets=None, told=None, MEET: tl.constexpr = False,
    LINK: tl.constexpr = None, LINK_CONSTANTS: tl.constexpr = None, CEILING: tl.constexpr = None,
    level=None, LEVEL: tl.constexpr = 0,
):  # fmt: skip
    """Forward over STRETCHES of COUNT tiles. READ writes outputs and the end, CHECK the stack before every stretch.

    SAVE writes what backward needs instead: then every one of SEGMENTS programs does one stretch, from its checkpoint.
    LAST writes the error of the last tile. SHIFTED takes keys off values. With MEET the programs of a head add up the squares of
    errors, which READ leaves and SAVE finds in ``squares``.
    """
    if MEET and READ:
        i, j0, arrivals = enter(tickets, NV)
        segment = i * 0
        told += i * 2 * NV * C
    else:
        pid = tl.program_id(0).to(tl.int64)
        j0, segment, i = pid % NV, (pid // NV) % SEGMENTS, pid // (NV * SEGMENTS)
    b, h = i // H, i % H
    rc, ri, rv = tl.arange(0, BC), tl.arange(0, BI), j0 * BV + tl.arange(0, BV)
    keep_i, keep_v = ri < I, rv < O
    size = I * O
    stack = load_stack(start + (i * SEGMENTS + segment) * J * size, size, ri, O, rv, keep_i, keep_v, J, FULL)
    if VECTOR:
        beside = load_vectors(vectors + (i * SEGMENTS + segment) * J * O, O, rv, keep_v, J)
    for stretch in range(0, STRETCHES):
        first = (segment + stretch) * COUNT
        if CHECK:
            place = checkpoints + (i * STRETCHES + stretch) * J * size
            store_stack(place, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
            if VECTOR:
                store_vectors(vector_checkpoints + (i * STRETCHES + stretch) * J * O, O, rv, keep_v, beside, J)
        for step in range(0, tl.minimum(COUNT, NT - first).to(tl.int32)):
            n = first + step
            left = tl.minimum(T - n * C, C)
            keep = rc < left
            at, token = i * NT + n, i * T + n * C
            K = load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
            V = load_tile(v + b * sv_b + h * sv_h + n * C * sv_t, rc, sv_t, rv, keep, keep_v, FULL).to(tl.float32)
            if SHIFTED:
                V -= load_tile(k + b * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, rv, keep, keep_v, FULL).to(tl.float32)
                V = V.to(DT).to(tl.float32)
            rate = tl.load(lr + token + rc, mask=keep, other=0.0)
            if GATE == 2:
                G = load_tile(gate + b * sg_b + h * sg_h + n * C * sg_t, rc, sg_t, rv, keep, keep_v, FULL)
            elif GATE == 1:
                G = tl.load(gate + token + rc, mask=keep, other=0.0)[:, None]
            else:
                G = 0.0
            begun = stack
            if CEILING is not None:
                begun = committed(stack, n, CEILING, J)
            if LINK is not None:
                linked = weights(begun[0], keep_i, keep_v, level, at, LINK, LINK_CONSTANTS, LEVEL, FULL)
                A = linked.to(DT)
                if LEVEL == 2:
                    begun = replaced(begun, linked, J)
            else:
                A = stack[0].to(DT)
            P = product(K, A, PRECISION)
            if VECTOR:
                P += beside[0][None, :]
            if SOLVE:
                P = P * tl.load(key_rows + at * J * C + rc, mask=keep, other=0.0)[:, None]
                for j in tl.static_range(1, J):
                    row = tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                    P += product(K, stack[j].to(DT), PRECISION) * row[:, None]
                X = load_tile(solve + at * C * C, rc, C, rc, keep, keep, FULL)
                D = product(X, RESIDUAL(P, V, G, CONSTANTS).to(DT), PRECISION)
            elif NORM > 0:
                D, _y, _scale, _e = error(P, P, V, G, RESIDUAL, CONSTANTS, True, False, NORM)
            else:
                D = RESIDUAL(P, V, G, CONSTANTS)
            if LAST:
                there = keep[:, None] & (keep_v & (n == NT - 1))[None, :]
                tl.store(last + i * C * O + rc[:, None] * O + rv[None, :], D, mask=there)
            if BOUND:
                if MEET and READ:
                    square = met(tl.sum(D * D, 1), told, arrivals, n, j0, C, NV, BC)
                    tl.store(squares + token + rc, square, mask=keep & (j0 == 0))
                elif MEET:
                    square = tl.load(squares + token + rc, mask=keep, other=0.0)
                else:
                    square = tl.sum(D * D, 1)
                rate = rate_of(rate, tl.load(inverse + token + rc, mask=keep, other=0.0), K, square)
            U = D * rate[:, None]
            if SAVE:
                store_stack(states + at * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
                store_tile(errors + token * O, rc, O, rv, keep, keep_v, D, FULL)
                store_tile(predictions + token * O, rc, O, rv, keep, keep_v, P, FULL)
                if BOUND:
                    tl.store(rates + token + rc, rate, mask=keep & (j0 == 0) if MEET else keep)
                if VECTOR:
                    store_vectors(vector_states + at * J * O, O, rv, keep_v, beside, J)
            if READ and LINK is not None:
                Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
                Y = product(Q, A, PRECISION)
                store_tile(o + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, Y, FULL)
            elif READ:
                Q = load_tile(q + b * sq_b + h * sq_h + n * C * sq_t, rc, sq_t, ri, keep, keep_i, FULL)
                if FORM == 0:
                    M = load_tile(pairs + at * C * C, rc, C, rc, keep, keep, FULL)
                else:
                    M = formed(pairs, at, rc, C, keep, FORM, False, False, DT)
                if VECTOR:
                    M = ((product(Q, tl.trans(K), PRECISION) + 1.0) * M).to(DT)
                else:
                    M = (product(Q, tl.trans(K), PRECISION) * M).to(DT)
                row = tl.load(rows + at * J * C + rc, mask=keep, other=0.0)
                Y = product(Q, stack[0].to(DT), PRECISION) * row[:, None]
                for j in tl.static_range(1, J):
                    row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                    Y += product(Q, stack[j].to(DT), PRECISION) * row[:, None]
                if VECTOR:
                    for j in tl.static_range(J):
                        row = tl.load(rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                        Y += beside[j][None, :] * row[:, None]
                Y -= product(M, U.to(DT), PRECISION)
                store_tile(o + b * so_b + h * so_h + n * C * so_t, rc, so_t, rv, keep, keep_v, Y, FULL)
            if VECTOR:
                beside = next_vectors(into, mix, at, rc, C, keep, U, beside, J, False)
            KT = tl.trans(K)
            new = ()
            for a in tl.static_range(J):
                share = tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
                W = product(KT, (U * share[:, None]).to(DT), PRECISION)
                for j in tl.static_range(J):
                    W += tl.load(mix + (at * J + a) * J + j) * begun[j]
                new = new + (W,)
            stack = new
    if READ:
        store_stack(end + i * J * size, size, ri, O, rv, keep_i, keep_v, stack, J, FULL)
        if VECTOR:
            store_vectors(vector_end + i * J * O, O, rv, keep_v, beside, J)

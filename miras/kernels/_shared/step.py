"""Triton: one token, with nothing to differentiate: every weight is read once or twice and written once.

In float32 throughout, since moving the weights takes all the time. Coefficients and their names are those of
`miras.kernels._matrix.scan` and `miras.engine.fused` for a stretch of one token.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.parts import bounded_rate, error, layer_norm


@triton.jit
def mixed(mix, i, row: tl.constexpr, J: tl.constexpr, stack):
    """``sum_j mix[row, j] stack[j]``."""
    total = tl.load(mix + (i * J + row) * J) * stack[0]
    for j in tl.static_range(1, J):
        total += tl.load(mix + (i * J + row) * J + j) * stack[j]
    return total


@triton.jit
def read(rows, i, J: tl.constexpr, x, stack):
    """``sum_j rows[j] x^T stack[j]``."""
    total = tl.load(rows + i * J) * tl.sum(x[:, None] * stack[0], 0)
    for j in tl.static_range(1, J):
        total += tl.load(rows + i * J + j) * tl.sum(x[:, None] * stack[j], 0)
    return total


@triton.jit
def load_stack(memory, slots, slot, where, keep, J: tl.constexpr):
    """The memory, and its slots that lie ``slot`` apart."""
    stack = (tl.load(memory + where, mask=keep, other=0.0),)
    for j in tl.static_range(1, J):
        stack = stack + (tl.load(slots + (j - 1) * slot + where, mask=keep, other=0.0),)
    return stack


@triton.jit
def matrix_step(
    q, k, v, lr, inverse, gate, rows, pairs, into, mix, key_rows, memory, slots, anchor, o, end,
    sq_b, sq_h, sk_b, sk_h, sv_b, sv_h, sg_b, sg_h, sm_b, sm_h, ss_b, ss_h, ss_j, sa_b, sa_h,
    H, I, O,
    J: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BOUND: tl.constexpr, SOLVE: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr, CONSTANTS: tl.constexpr,
):  # fmt: skip
    """A block of value channels of one head."""
    i, block = (tl.program_id(0) // NV).to(tl.int64), tl.program_id(0) % NV
    b, h = i // H, i % H
    ri, rv = tl.arange(0, BI), block * BV + tl.arange(0, BV)
    where, keep = ri[:, None] * O + rv[None, :], (ri < I)[:, None] & (rv < O)[None, :]
    K = tl.load(k + b * sk_b + h * sk_h + ri, mask=ri < I, other=0.0).to(tl.float32)
    Q = tl.load(q + b * sq_b + h * sq_h + ri, mask=ri < I, other=0.0).to(tl.float32)
    V = tl.load(v + b * sv_b + h * sv_h + rv, mask=rv < O, other=0.0).to(tl.float32)[None, :]
    stack = load_stack(memory + b * sm_b + h * sm_h, slots + b * ss_b + h * ss_h, ss_j, where, keep, J)
    if SOLVE:
        P = read(key_rows, i, J, K, stack)
    else:
        P = tl.sum(K[:, None] * tl.load(anchor + b * sa_b + h * sa_h + where, mask=keep, other=0.0), 0)
    if GATE == 2:
        G = tl.load(gate + b * sg_b + h * sg_h + rv, mask=rv < O, other=0.0)[None, :]
    elif GATE == 1:
        G = tl.load(gate + i)
    else:
        G = 0.0
    D = RESIDUAL(P[None, :], V, G, CONSTANTS)
    rate = tl.load(lr + i)
    if BOUND:
        rate = bounded_rate(rate, tl.load(inverse + i), tl.sum(K * K, 0) * tl.sum(tl.sum(D * D, 1), 0))
    U = tl.sum(D, 0) * rate
    y = read(rows, i, J, Q, stack) - tl.load(pairs + i) * tl.sum(Q * K, 0) * U
    tl.store(o + i * O + rv, y, mask=rv < O)
    for j in tl.static_range(J):
        new = mixed(mix, i, j, J, stack) + tl.load(into + i * J + j) * K[:, None] * U[None, :]
        tl.store(end + (i * J + j) * I * O + where, new, mask=keep)


@triton.jit
def perceptron_step(
    q, k, v, lr, inverse, gate, rows, pairs, into, mix,
    memory1, slots1, anchor1, memory2, slots2, anchor2, o, end1, end2,
    sq_b, sq_h, sk_b, sk_h, sv_b, sv_h, sg_b, sg_h,
    sm1_b, sm1_h, ss1_b, ss1_h, ss1_j, sa1_b, sa1_h, sm2_b, sm2_h, ss2_b, ss2_h, ss2_j, sa2_b, sa2_h,
    H,
    J: tl.constexpr, I: tl.constexpr, F: tl.constexpr, O: tl.constexpr, BF: tl.constexpr,
    BOUND: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head: its error, then, in tiles of the hidden width, the update and what the query reads after it."""
    i = tl.program_id(0).to(tl.int64)
    b, head = i // H, i % H
    ri, ro, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, BF)
    K = tl.load(k + b * sk_b + head * sk_h + ri).to(tl.float32)
    Q = tl.load(q + b * sq_b + head * sq_h + ri).to(tl.float32)
    V = tl.load(v + b * sv_b + head * sv_h + ro).to(tl.float32)[None, :]
    a1, a2 = anchor1 + b * sa1_b + head * sa1_h, anchor2 + b * sa2_b + head * sa2_h

    out = tl.zeros([O], tl.float32)
    energy = 0.0  # the squared norm of h
    for f in range(0, F, BF):
        hidden, _slope, _curve = ACT(tl.sum(K[:, None] * tl.load(a1 + ri[:, None] * F + (f + rf)[None, :]), 0))
        out += tl.sum(hidden[:, None] * tl.load(a2 + (f + rf)[:, None] * O + ro[None, :]), 0)
        energy += tl.sum(hidden * hidden, 0)
    G = 0.0
    if GATE == 1:
        G = tl.load(gate + i)
    if GATE == 2:
        G = tl.load(gate + b * sg_b + head * sg_h + ro)[None, :]
    answer = tl.load(k + b * sk_b + head * sk_h + ro).to(tl.float32)[None, :] if RESIDUAL else V
    u2, _y, _scale, _e = error(out[None, :], answer, V, G, BIAS, P, NORM, RESIDUAL, EPS, WIDTH)
    U2 = tl.sum(u2, 0)

    rate1 = tl.load(lr + i)
    rate2 = rate1
    if BOUND:
        squares = 0.0
        for f in range(0, F, BF):
            _h, slope, _curve = ACT(tl.sum(K[:, None] * tl.load(a1 + ri[:, None] * F + (f + rf)[None, :]), 0))
            u1 = slope * tl.sum(U2[None, :] * tl.load(a2 + (f + rf)[:, None] * O + ro[None, :]), 1)
            squares += tl.sum(u1 * u1, 0)
        bound = tl.load(inverse + i)
        rate2 = bounded_rate(rate1, bound, energy * tl.sum(U2 * U2, 0))
        rate1 = bounded_rate(rate1, bound, tl.sum(K * K, 0) * squares)

    y = tl.zeros([O], tl.float32)
    score = 0.0
    pair, overlap = tl.load(pairs + i), tl.sum(Q * K, 0)
    for f in range(0, F, BF):
        at1, at2 = ri[:, None] * F + (f + rf)[None, :], (f + rf)[:, None] * O + ro[None, :]
        hidden, slope, _curve = ACT(tl.sum(K[:, None] * tl.load(a1 + at1), 0))
        u1 = slope * tl.sum(U2[None, :] * tl.load(a2 + at2), 1)
        first = load_stack(memory1 + b * sm1_b + head * sm1_h, slots1 + b * ss1_b + head * ss1_h, ss1_j, at1, True, J)
        second = load_stack(memory2 + b * sm2_b + head * sm2_h, slots2 + b * ss2_b + head * ss2_h, ss2_j, at2, True, J)
        seen, _slope, _curve = ACT(read(rows, i, J, Q, first) - pair * rate1 * overlap * u1)
        y += read(rows, i, J, seen, second)
        score += tl.sum(seen * hidden, 0)
        for j in tl.static_range(J):
            c = tl.load(into + i * J + j)
            new1 = mixed(mix, i, j, J, first) + c * rate1 * K[:, None] * u1[None, :]
            tl.store(end1 + (i * J + j) * I * F + at1, new1)
            new2 = mixed(mix, i, j, J, second) + c * rate2 * hidden[:, None] * U2[None, :]
            tl.store(end2 + (i * J + j) * F * O + at2, new2)
    y = (y - pair * rate2 * score * U2)[None, :]
    if NORM:
        y, _scale = layer_norm(y, EPS, WIDTH)
    if RESIDUAL:
        y += tl.load(q + b * sq_b + head * sq_h + ro).to(tl.float32)[None, :]
    tl.store(o + i * O + ro, tl.sum(y, 0))

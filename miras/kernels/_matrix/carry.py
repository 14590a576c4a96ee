"""Triton: what a segment of a sequence does to a matrix memory whose errors are affine in it, all segments at once.

A segment maps the stack before it, ``[J I, O]`` with all matrices below each other, to ``phi stack + own``. Its own part is
the recurrence from an empty stack; phi is the same recurrence without values from unit columns, J I of them in the place of
value channels. Letters and coefficients are those of `miras.kernels._matrix.scan`.
"""

import triton
import triton.language as tl

from miras.kernels._matrix.scan import load_tile, product


@triton.jit
def carry(
    k, v, lr, gate, into, mix, key_rows, solve, start, own, phi,
    sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, H, T, C, NT, I, O, SEGMENTS, OWN,
    J: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, NP: tl.constexpr,
    MAPS: tl.constexpr, SOLVE: tl.constexpr, GATE: tl.constexpr, CONSTANT: tl.constexpr, RESIDUAL: tl.constexpr,
    CONSTANTS: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """The first OWN programs find own parts of all segments but the last, the others phi of those between first and last.

    Segments lie beside each other as rows of a batch, ``[B SEGMENTS, H, ...]``, each of NT tiles. The first one begins with
    what there is before the sequence, so that its own part is the stack after it.
    """
    pid = tl.program_id(0).to(tl.int64)
    is_own = pid < OWN
    rest = pid - OWN
    j0 = tl.where(is_own, pid % NV, rest % NP)
    between = tl.maximum(SEGMENTS - 2, 1)
    segment = tl.where(is_own, (pid // NV) % (SEGMENTS - 1), 1 + (rest // NP) % between)
    head = tl.where(is_own, pid // (NV * (SEGMENTS - 1)), rest // (NP * between))
    row, h = head // H * SEGMENTS + segment, head % H
    i = row * H + h
    rc, ri, rv = tl.arange(0, BC), tl.arange(0, BI), j0 * BV + tl.arange(0, BV)
    keep_i, keep_v = ri < I, (rv < O) & is_own
    size = I * O
    first = keep_i[:, None] & (keep_v & (segment == 0))[None, :]
    stack = ()
    for j in tl.static_range(J):
        unit = keep_i[:, None] & (j * I + ri[:, None] == rv[None, :]) & (pid >= OWN)
        at_start = tl.load(start + (head * J + j) * size + ri[:, None] * O + rv[None, :], mask=first, other=0.0)
        stack = stack + (at_start + tl.where(unit, 1.0, 0.0),)
    for n in range(0, NT):
        keep = rc < tl.minimum(T - n * C, C)
        at, token = i * NT + n, i * T + n * C
        K = load_tile(k + row * sk_b + h * sk_h + n * C * sk_t, rc, sk_t, ri, keep, keep_i, FULL)
        where = v + row * sv_b + h * sv_h + n * C * sv_t + rc[:, None] * sv_t + rv[None, :]
        V = tl.load(where, mask=keep[:, None] & keep_v[None, :], other=0.0).to(tl.float32)
        rate = tl.load(lr + token + rc, mask=keep, other=0.0)
        if GATE == 1:
            G = tl.load(gate + token + rc, mask=keep, other=0.0)[:, None]
        else:
            G = 0.0
        if CONSTANT:
            D = RESIDUAL(V * 0.0, V, G, CONSTANTS)
        elif SOLVE:
            share = tl.load(key_rows + at * J * C + rc, mask=keep, other=0.0)
            P = product(K, stack[0].to(DT), PRECISION) * share[:, None]
            for j in tl.static_range(1, J):
                share = tl.load(key_rows + (at * J + j) * C + rc, mask=keep, other=0.0)
                P += product(K, stack[j].to(DT), PRECISION) * share[:, None]
            X = load_tile(solve + at * C * C, rc, C, rc, keep, keep, FULL)
            D = product(X, RESIDUAL(P, V, G, CONSTANTS).to(DT), PRECISION)
        else:
            D = RESIDUAL(product(K, stack[0].to(DT), PRECISION), V, G, CONSTANTS)
        U = D * rate[:, None]
        KT = tl.trans(K)
        new = ()
        for a in tl.static_range(J):
            share = tl.load(into + (at * J + a) * C + rc, mask=keep, other=0.0)
            W = product(KT, (U * share[:, None]).to(DT), PRECISION)
            for j in tl.static_range(J):
                W += tl.load(mix + (at * J + a) * J + j) * stack[j]
            new = new + (W,)
        stack = new
    after = head // H * (SEGMENTS - 1) + segment
    for j in tl.static_range(J):
        place = own + ((after * H + h) * J + j) * size + ri[:, None] * O + rv[None, :]
        tl.store(place, stack[j], mask=keep_i[:, None] & keep_v[None, :])
    if MAPS:
        width = J * I
        after = head // H * between + segment - 1
        for j in tl.static_range(J):
            place = phi + ((after * H + h) * width + j * I + ri[:, None]) * width + rv[None, :]
            tl.store(place, stack[j], mask=keep_i[:, None] & ((rv < width) & (pid >= OWN))[None, :])

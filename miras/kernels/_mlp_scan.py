"""Through the chunks of a sequence: weights stay in registers, one tile of the hidden width a program.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import add_up, arrive, bounded_rate, dot, error, load_gate, wait


@triton.jit(do_not_specialize=["first", "count", "total"])
def scan(
    k, v, gate, lr, inverse, mix, into,  # [b, total C, ...]
    w1, w2, end1, end2, w1_stride, w2_stride, end1_stride, end2_stride,  # stacks before the first chunk and after the last, [b, J, I, F], [b, J, F, O]
    seen1, seen2, kept_o, squares,  # of every chunk: stacks before it (second matrices transposed), o, squared norms
    parts, norms, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` from chunk to chunk."""
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    ticket = tl.atomic_add(tickets, 1)
    b = (ticket // TILES).to(tl.int64)
    tile = ticket % TILES
    arrivals = tickets + 1 + b
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], rf[None, :] * O + ro[:, None]
    seen_at2 = ro[:, None] * F + rf[None, :]
    ci, co = rc[:, None] * I + ri[None, :], rc[:, None] * O + ro[None, :]
    met = 0

    a1, a2 = tl.load(w1 + b * w1_stride + at1), tl.load(w2 + b * w2_stride + at2)
    if SLOT:
        m1, m2 = tl.load(w1 + b * w1_stride + I * F + at1), tl.load(w2 + b * w2_stride + F * O + at2)

    for n in range(count):
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        kk = tl.load(k + chunk * C * I + ci)
        a1d, a2d = a1.to(DT), a2.to(DT)
        h, slope, curve = ACT(dot(kk, a1d))
        hd = h.to(DT)
        shared = (b * 2 + n % 2) * TILES
        tl.store(parts + (shared + tile) * C * O + co, dot(hd, tl.trans(a2d)))
        if BOUND:
            tl.store(norms + (shared * 2 + tile) * C + rc, tl.sum(h * h, 1))
        arrive(arrivals)
        met += TILES

        # what does not wait for the others
        tl.store(seen1 + local * J * I * F + at1, a1d)
        tl.store(seen2 + local * J * F * O + seen_at2, a2d)
        rate = tl.load(lr + token)
        row0 = tl.load(into + chunk * J * C + rc)
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            tl.store(seen1 + (local * J + 1) * I * F + at1, m1.to(DT))
            tl.store(seen2 + (local * J + 1) * F * O + seen_at2, m2.to(DT))
            row1 = tl.load(into + chunk * J * C + C + rc)
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            x1, x2 = m10 * a1 + m11 * m1, m10 * a2 + m11 * m2
            a1, a2 = m00 * a1 + m01 * m1, m00 * a2 + m01 * m2
        else:
            a1, a2 = m00 * a1, m00 * a2
        vv = tl.load(v + chunk * C * O + co).to(tl.float32)
        g = load_gate(gate, token, chunk * C * O + co, GATE)

        wait(arrivals, met)
        o = add_up(parts + shared * C * O, co, C * O, TILES)
        if tile == 0:
            tl.store(kept_o + local * C * O + co, o)
        u2, y, scale, e = error(o, kk.to(tl.float32), vv, g, BIAS, P, NORM, RESIDUAL, EPS)
        u1 = dot(u2.to(DT), a2d) * slope
        s1, s2 = rate, rate
        if BOUND:
            bound = tl.load(inverse + token)
            h_square = add_up(norms + shared * 2 * C, rc, C, TILES)
            tl.store(norms + (shared * 2 + TILES + tile) * C + rc, tl.sum(u1 * u1, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            u1_square = add_up(norms + (shared * 2 + TILES) * C, rc, C, TILES)
            kf = kk.to(tl.float32)
            s1, norm1 = bounded_rate(rate, bound, tl.sum(kf * kf, 1), u1_square, BOUND)
            s2, norm2 = bounded_rate(rate, bound, h_square, tl.sum(u2 * u2, 1), BOUND)
            if tile == 0:
                tl.store(squares + local * 2 * C + rc, h_square)
                tl.store(squares + local * 2 * C + C + rc, u1_square)
        kt = tl.trans(kk)
        a1 = dot(kt, (u1 * (row0 * s1)[:, None]).to(DT), a1)
        a2 = dot(tl.trans((u2 * (row0 * s2)[:, None]).to(DT)), hd, a2)
        if SLOT:
            m1 = dot(kt, (u1 * (row1 * s1)[:, None]).to(DT), x1)
            m2 = dot(tl.trans((u2 * (row1 * s2)[:, None]).to(DT)), hd, x2)

    if end1 is not None:
        tl.store(end1 + b * end1_stride + at1, a1)
        tl.store(end2 + b * end2_stride + at2, a2)
        if SLOT:
            tl.store(end1 + b * end1_stride + I * F + at1, m1)
            tl.store(end2 + b * end2_stride + F * O + at2, m2)

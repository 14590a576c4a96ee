"""Forward through the chunks of a sequence: weights stay in registers, one tile of the hidden width a program.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels.mlp_parts import add_up, arrive, bounded_rate, error, wait


@triton.jit
def dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["first", "count", "total", "every"])
def scan(
    q, k, v, gate, lr, inverse, carry, pairs, slot, mix, into,  # [b, total C, ...]
    w1, w2, w1_stride, w2_stride,  # stacks before the first chunk, [b, J, I, F] and [b, J, F, O]
    out, end1, end2,  # READ: answers [b, total C, O]; stacks after the last chunk
    keep1, keep2, every,  # READ: stacks before every so many chunks, [b, kept, J, I, F]
    seen1, seen2, kept_o, squares,  # SAVE: of every chunk; second matrices transposed
    parts, norms, answers, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr, READ: tl.constexpr, SAVE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """``READ`` answers queries on the way; ``SAVE`` keeps what the backward pass of every chunk begins with."""
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
    co = rc[:, None] * O + ro[None, :]
    rr = tile * ROWS + tl.arange(0, ROWS)
    mine = rr[:, None] * O + ro[None, :]
    mine_in = (rr < C)[:, None] & (ro >= 0)[None, :]
    met = 0

    a1, a2 = tl.load(w1 + b * w1_stride + at1), tl.load(w2 + b * w2_stride + at2)
    if SLOT:
        m1, m2 = tl.load(w1 + b * w1_stride + I * F + at1), tl.load(w2 + b * w2_stride + F * O + at2)

    for n in range(count):
        chunk = b * total + first + n
        token = chunk * C + rc
        a1d, a2d = a1.to(DT), a2.to(DT)
        if SLOT:
            m1d, m2d = m1.to(DT), m2.to(DT)
        if READ:
            if n % every == 0:
                kept = (b * tl.cdiv(count, every) + n // every) * J
                tl.store(keep1 + kept * I * F + at1, a1)
                tl.store(keep2 + kept * F * O + at2, a2)
                if SLOT:
                    tl.store(keep1 + (kept + 1) * I * F + at1, m1)
                    tl.store(keep2 + (kept + 1) * F * O + at2, m2)
        if SAVE:
            local = b * count + n
            tl.store(seen1 + local * J * I * F + at1, a1d)
            tl.store(seen2 + local * J * F * O + seen_at2, a2d)
            if SLOT:
                tl.store(seen1 + (local * J + 1) * I * F + at1, m1d)
                tl.store(seen2 + (local * J + 1) * F * O + seen_at2, m2d)

        kk = tl.load(k + token[:, None] * I + ri[None, :])
        h, slope, _ = ACT(dot(kk, a1d))
        hd = h.to(DT)
        o_part = dot(hd, tl.trans(a2d))
        shared = (b * 2 + n % 2) * TILES
        tl.store(parts + (shared + tile) * C * O + co, o_part)
        if BOUND:
            tl.store(norms + (shared * 2 + tile) * C + rc, tl.sum(h * h, 1))
        arrive(arrivals)
        met += TILES

        # what queries meet in the weights does not wait for the others
        vv = tl.load(v + token[:, None] * O + ro[None, :]).to(tl.float32)
        kf = kk.to(tl.float32)
        g = 0.0
        if GATE == 1:
            g = tl.load(gate + token)[:, None]
        if GATE == 2:
            g = tl.load(gate + token[:, None] * O + ro[None, :])
        rate = tl.load(lr + token)
        if READ:
            qq = tl.load(q + token[:, None] * I + ri[None, :])
            weight = tl.load(pairs + chunk * C * C + rc[:, None] * C + rc[None, :])
            row = tl.load(carry + token)[:, None]
            scores = dot(qq, tl.trans(kk)) * weight
            zr = row * dot(qq, a1d)
            if SLOT:
                slot_row = -tl.load(slot + token)[:, None]
                zr += slot_row * dot(qq, m1d)

        wait(arrivals, met)
        o = add_up(parts + shared * C * O, co, C * O, TILES)
        if READ:
            if n > 0:
                before = (b * 2 + (n - 1) % 2) * TILES * C * O
                got = tl.zeros([ROWS, O], tl.float32)
                for t in tl.static_range(TILES):
                    got += tl.load(answers + before + t * C * O + mine, mask=mine_in, cache_modifier=".cg", other=0.0)
                tl.store(out + (chunk - 1) * C * O + mine, got, mask=mine_in)
        u2, _, _, _ = error(o, kf, vv, g, BIAS, P, NORM, RESIDUAL, EPS)
        u2d = u2.to(DT)
        u1 = dot(u2d, a2d) * slope
        s1, s2 = rate, rate
        if BOUND:
            bound = tl.load(inverse + token)
            h_square = add_up(norms + shared * 2 * C, rc, C, TILES)
            tl.store(norms + (shared * 2 + TILES + tile) * C + rc, tl.sum(u1 * u1, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            u1_square = add_up(norms + (shared * 2 + TILES) * C, rc, C, TILES)
            s1, _ = bounded_rate(rate, bound, tl.sum(kf * kf, 1), u1_square, BOUND)
            s2, _ = bounded_rate(rate, bound, h_square, tl.sum(u2 * u2, 1), BOUND)
        if SAVE:
            if tile == 0:
                tl.store(kept_o + (b * count + n) * C * O + co, o)
                if BOUND:
                    tl.store(squares + (b * count + n) * 2 * C + rc, h_square)
                    tl.store(squares + (b * count + n) * 2 * C + C + rc, u1_square)

        if READ:
            zr -= dot((scores * s1[None, :]).to(DT), u1.to(DT))
            hr, _, _ = ACT(zr)
            hrd = hr.to(DT)
            y = row * dot(hrd, tl.trans(a2d))
            if SLOT:
                y += slot_row * dot(hrd, tl.trans(m2d))
            y -= dot((dot(hrd, tl.trans(hd)) * (weight * s2[None, :])).to(DT), u2d)
            tl.store(answers + (shared + tile) * C * O + co, y)

        kt = tl.trans(kk)
        row0 = tl.load(into + chunk * J * C + rc)
        g1 = dot(kt, (u1 * (row0 * s1)[:, None]).to(DT))
        g2 = dot(tl.trans((u2 * (row0 * s2)[:, None]).to(DT)), hd)
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            x1 = m10 * a1 + m11 * m1 + dot(kt, (u1 * (row1 * s1)[:, None]).to(DT))
            x2 = m10 * a2 + m11 * m2 + dot(tl.trans((u2 * (row1 * s2)[:, None]).to(DT)), hd)
            a1 = m00 * a1 + m01 * m1 + g1
            a2 = m00 * a2 + m01 * m2 + g2
            m1, m2 = x1, x2
        else:
            a1 = m00 * a1 + g1
            a2 = m00 * a2 + g2

    if READ:
        arrive(arrivals)
        wait(arrivals, met + TILES)
        last = (b * 2 + (count - 1) % 2) * TILES * C * O
        got = tl.zeros([ROWS, O], tl.float32)
        for t in tl.static_range(TILES):
            got += tl.load(answers + last + t * C * O + mine, mask=mine_in, cache_modifier=".cg", other=0.0)
        tl.store(out + (b * total + first + count - 1) * C * O + mine, got, mask=mine_in)
        tl.store(end1 + b * J * I * F + at1, a1)
        tl.store(end2 + b * J * F * O + at2, a2)
        if SLOT:
            tl.store(end1 + (b * J + 1) * I * F + at1, m1)
            tl.store(end2 + (b * J + 1) * F * O + at2, m2)

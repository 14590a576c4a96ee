"""Through the chunks of a sequence: weights stay in registers, one tile of the hidden width a program.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import load_biases, mixed, store_biases
from miras.kernels._mlp.blocks import store_and_anchor
from miras.kernels._mlp.gains import copy_gains, gained_error, next_gains, write_gains
from miras.kernels._mlp.halves import HALF, squared_norms, store_products
from miras.kernels._mlp.links import NORMALISER, apart, link, multiplier, shared, slope, tell
from miras.kernels._mlp.meetings import add_up, arrive, enter, own_rows, wait
from miras.kernels._mlp.parts import bounded_rate, dot, error, load_gate


@triton.jit(do_not_specialize=["first", "count", "total"])
def scan(
    k, v, gate, lr, inverse, mix, into,  # [b, total C, ...]
    w1, w2, end1, end2,  # stacks before the first chunk and after the last, [b, J, I, F], [b, J, O, F]
    w1_stride, w2_stride, end1_stride, end2_stride,
    biases, end_biases,  # the same of the fast biases of both, [b, J, F + O]
    gains, end_gains,  # the same of the fast gain and shift, [b, J, 2 O]
    seen1, seen2, kept_o, kept_u2, squares,  # of every chunk: stacks before it, o, u2, and squared norms and rates
    seen_b, rates_b,  # fast biases before every chunk, and their rates
    seen_g, errors_g,  # gain and shift before every chunk, and the errors there, [b, count, C, 2 O]
    rates, sizes,  # under a link, of every chunk: rates of what is read, in the places of ``squares``; norms
    parts, norms, meet, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr, BIASES: tl.constexpr, GAINS: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` from chunk to chunk. Second matrices are transposed.

    Under a link the W there are accumulators, and everything else sees their links at the start of the chunk.
    """
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b, tile, arrivals = enter(tickets, TILES)
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], ro[:, None] * F + rf[None, :]
    ci, co = rc[:, None] * I + ri[None, :], rc[:, None] * O + ro[None, :]
    rr, here, ro_at, ri_at = own_rows(tile, ROWS, C, I, O)
    parts += b * TILES * C * O
    norms += b * 2 * TILES * C
    met = 0

    a1, a2 = tl.load(w1 + b * w1_stride + at1), tl.load(w2 + b * w2_stride + at2)
    if SLOT:
        m1, m2 = tl.load(w1 + b * w1_stride + I * F + at1), tl.load(w2 + b * w2_stride + F * O + at2)
    if BIASES:
        b1, b2, c1, c2 = load_biases(biases + b * J * (F + O), rf, ro, F, O, SLOT)
    if GAINS:
        told_g = meet + (b * TILES + tile) * 4 * J * O
        mine_g = told_g + 2 * J * O
        copy_gains(gains + b * J * 2 * O, mine_g, ro, O, SLOT)

    for n in range(count):
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        kk = tl.load(k + chunk * C * I + ci)
        if LINK > 0:
            tell(a1, a2, meet + (b * TILES + tile) * 2 * O, O, LINK, L)
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            a1, a2, l1, l2, n1, n2 = link(a1, a2, meet + b * TILES * 2 * O, O, TILES, LINK, L, WIDTH)
            a1d, a2d = apart(l1, 0, LINK, L).to(DT), apart(l2, 1, LINK, L).to(DT)
            if tile == 0:
                tl.store(sizes + local * 2, n1)
                tl.store(sizes + local * 2 + 1, n2)
        else:
            a1d, a2d = a1.to(DT), a2.to(DT)
        if BLOCKS > 1 or O > HALF:
            own1, own2 = seen1 + local * J * I * F + at1, seen2 + local * J * F * O + at2
            a1d, a2d = store_and_anchor(own1, own2, a1d, a2d, n, J, I, O, F, BLOCKS)
        z = shared(kk, dot(kk, a1d), 0, LINK, L)
        if BIASES:
            z += b1[None, :]
        h, bend, _curve = ACT(z)
        hd = h.to(DT)
        if O > HALF:
            store_products(parts + tile * C * O, (hd,), (seen2 + (local - n % BLOCKS) * J * F * O,), rf, C, O, F, 1)
        else:
            tl.store(parts + tile * C * O + co, shared(h, dot(hd, tl.trans(a2d)), 1, LINK, L, WIDTH=WIDTH))
        if BOUND:
            tl.store(norms + tile * C + rc, tl.sum(h * h, 1))
        arrive(arrivals)
        met += TILES

        # what does not wait for the others
        if BLOCKS == 1 and O <= HALF:
            tl.store(seen1 + local * J * I * F + at1, a1d)
            tl.store(seen2 + local * J * F * O + at2, a2d)
        if BIASES:
            store_biases(seen_b + local * J * (F + O), b1, b2, c1, c2, rf, ro, tile, F, O, SLOT)
            before = b2
            b1, b2, c1, c2 = mixed(b1, b2, c1, c2, mix + chunk * J * J, False, SLOT)
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            tl.store(seen1 + (local * J + 1) * I * F + at1, m1.to(DT))
            tl.store(seen2 + (local * J + 1) * F * O + at2, m2.to(DT))
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            x1, x2 = m10 * a1 + m11 * m1, m10 * a2 + m11 * m2
            a1, a2 = m00 * a1 + m01 * m1, m00 * a2 + m01 * m2
            m1, m2 = x1, x2
        else:
            a1, a2 = m00 * a1, m00 * a2
        k_row = tl.load(k + chunk * C * I + ri_at, mask=here[:, None], other=0.0).to(tl.float32)
        v_row = tl.load(v + chunk * C * O + ro_at, mask=here[:, None], other=0.0).to(tl.float32)
        g = load_gate(gate, chunk * C + rr, chunk * C * O + ro_at, here, GATE)

        wait(arrivals, met)
        o = add_up(parts, ro_at, C * O, here[:, None], TILES)
        if BIASES:
            o += before[None, :]
        if GAINS:
            if tile == 0:
                copy_gains(mine_g, seen_g + local * J * 2 * O, ro, O, SLOT)
            u2, y, _scale, e = gained_error(o, k_row, v_row, g, mine_g, ro, O, BIAS, P, RESIDUAL, EPS)
            write_gains(
                e, y, errors_g + local * C * 2 * O, lr, inverse, into + chunk * J * C, chunk * C,
                told_g, rr, ro, here, C, O, SLOT, BOUND,
            )  # fmt: skip
        else:
            u2, _y, _scale, _e = error(o, k_row, v_row, g, BIAS, P, NORM, RESIDUAL, EPS, WIDTH)
        tl.store(kept_o + local * C * O + ro_at, o, mask=here[:, None])
        tl.store(kept_u2 + local * C * O + ro_at, u2.to(DT), mask=here[:, None])
        if BOUND:
            tl.store(squares + local * 5 * C + rr, add_up(norms, rr, C, here, TILES), mask=here)
            tl.store(squares + (local * 5 + 2) * C + rr, tl.sum(u2 * u2, 1), mask=here)
        arrive(arrivals)
        met += TILES
        s1 = tl.load(lr + token)
        s2 = s1
        if BIASES:
            t1, t2 = s1, s1
        row0 = tl.load(into + chunk * J * C + rc)
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)

        wait(arrivals, met)
        if GAINS:
            next_gains(mine_g, meet + b * TILES * 4 * J * O, mix + chunk * J * J, ro, O, SLOT, TILES)
        u2d = tl.load(kept_u2 + local * C * O + co, cache_modifier=".cg")
        u1 = shared(u2d, dot(u2d, a2d), 1, LINK, L, NORM) * bend
        if BOUND:
            bound = tl.load(inverse + token)
            tl.store(norms + (TILES + tile) * C + rc, tl.sum(u1 * u1, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            h_square = tl.load(squares + local * 5 * C + rc, cache_modifier=".cg")
            u2_square = tl.load(squares + (local * 5 + 2) * C + rc, cache_modifier=".cg")
            u1_square = add_up(norms + TILES * C, rc, C, rc < C, TILES)
            kf = kk.to(tl.float32)
            if LINK > 0:
                s1 = bounded_rate(s1, bound * slope(n1, LINK, L), tl.sum(kf * kf, 1) * u1_square)
                s2 = bounded_rate(s2, bound * slope(n2, LINK, L), h_square * u2_square)
            elif I > HALF:
                s1 = bounded_rate(s1, bound, squared_norms(k + chunk * C * I, C, I) * u1_square)
                s2 = bounded_rate(s2, bound, h_square * u2_square)
            else:
                s1 = bounded_rate(s1, bound, tl.sum(kf * kf, 1) * u1_square)
                s2 = bounded_rate(s2, bound, h_square * u2_square)
            if BIASES:
                t1, t2 = bounded_rate(t1, bound, u1_square), bounded_rate(t2, bound, u2_square)
            if tile == 0:
                tl.store(squares + (local * 5 + 1) * C + rc, u1_square)
                tl.store(squares + (local * 5 + 3) * C + rc, s1)
                tl.store(squares + (local * 5 + 4) * C + rc, s2)
        if LINK == NORMALISER:  # noqa: SIM102  # one is known when it is compiled, the other is not
            if tile == 0:
                tl.store(rates + (local * 5 + 3) * C + rc, s1 * multiplier(n1, LINK, L))
                tl.store(rates + (local * 5 + 4) * C + rc, s2 * multiplier(n2, LINK, L))
        kt, ut, hf = tl.trans(kk), tl.trans(u2d), hd.to(tl.float32)
        a1 = dot(kt, (u1 * (row0 * s1)[:, None]).to(DT), a1)
        a2 = dot(ut, (hf * (row0 * s2)[:, None]).to(DT), a2)
        if SLOT:
            m1 = dot(kt, (u1 * (row1 * s1)[:, None]).to(DT), m1)
            m2 = dot(ut, (hf * (row1 * s2)[:, None]).to(DT), m2)
        if BIASES:
            u2f = u2d.to(tl.float32)
            if tile == 0:
                tl.store(rates_b + local * 4 * C + rc, t1)
                tl.store(rates_b + (local * 4 + 1) * C + rc, t2)
            b1 += tl.sum(u1 * (row0 * t1)[:, None], 0)
            b2 += tl.sum(u2f * (row0 * t2)[:, None], 0)
            if SLOT:
                c1 += tl.sum(u1 * (row1 * t1)[:, None], 0)
                c2 += tl.sum(u2f * (row1 * t2)[:, None], 0)

    if end1 is not None:
        tl.store(end1 + b * end1_stride + at1, a1)
        tl.store(end2 + b * end2_stride + at2, a2)
        if SLOT:
            tl.store(end1 + b * end1_stride + I * F + at1, m1)
            tl.store(end2 + b * end2_stride + F * O + at2, m2)
    if end_biases is not None:
        store_biases(end_biases + b * J * (F + O), b1, b2, c1, c2, rf, ro, tile, F, O, SLOT)
    if end_gains is not None:
        tl.debug_barrier()
        if tile == 0:
            copy_gains(mine_g, end_gains + b * J * 2 * O, ro, O, SLOT)

"""Through the chunks of a sequence: weights stay in registers, one tile of the hidden width a program.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._gated.parts import hidden
from miras.kernels._mlp.meetings import add_up, arrive, enter, own_rows, wait
from miras.kernels._mlp.parts import bounded_rate, dot, error, load_gate


@triton.jit(do_not_specialize=["first", "count", "total"])
def scan(
    k, v, gate, lr, inverse, mix, into,  # [b, total C, ...]
    w1, w2, end1, end2,  # stacks before the first chunk and after the last, [b, J, 2, I, F], [b, J, O, F]
    w1_stride, w2_stride, end1_stride, end2_stride,
    seen1, seen2, kept_o, kept_u2,  # of every chunk: stacks before it, o and u
    squares, rates,  # of every chunk, [b, count, 4, C] and [b, count, 3, C]: squared norms of ug, uu, h and u; rates
    parts, norms, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` from chunk to chunk, of gate, up and, transposed, down."""
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b, tile, arrivals = enter(tickets, TILES)
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], ro[:, None] * F + rf[None, :]
    ci, co = rc[:, None] * I + ri[None, :], rc[:, None] * O + ro[None, :]
    rr, here, ro_at, ri_at = own_rows(tile, ROWS, C, I, O)
    parts += b * TILES * C * O
    norms += b * 3 * TILES * C
    met = 0

    w1 += b * w1_stride
    w2 += b * w2_stride
    ag, au, ad = tl.load(w1 + at1), tl.load(w1 + I * F + at1), tl.load(w2 + at2)
    if SLOT:
        mg, mu, md = tl.load(w1 + 2 * I * F + at1), tl.load(w1 + 3 * I * F + at1), tl.load(w2 + F * O + at2)

    for n in range(count):
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        before1, before2 = seen1 + local * J * 2 * I * F + at1, seen2 + local * J * F * O + at2
        kk = tl.load(k + chunk * C * I + ci)
        agd, aud, add = ag.to(DT), au.to(DT), ad.to(DT)
        h, bend_g, bend_u, _turn_g, _turn_u = hidden(dot(kk, agd), dot(kk, aud), ACT)
        hd = h.to(DT)
        tl.store(parts + tile * C * O + co, dot(hd, tl.trans(add)))
        if BOUND:
            tl.store(norms + (2 * TILES + tile) * C + rc, tl.sum(h * h, 1))
        arrive(arrivals)
        met += TILES

        # what does not wait for the others
        tl.store(before1, agd)
        tl.store(before1 + I * F, aud)
        tl.store(before2, add)
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            tl.store(before1 + 2 * I * F, mg.to(DT))
            tl.store(before1 + 3 * I * F, mu.to(DT))
            tl.store(before2 + F * O, md.to(DT))
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            xg, xu, xd = m10 * ag + m11 * mg, m10 * au + m11 * mu, m10 * ad + m11 * md
            ag, au, ad = m00 * ag + m01 * mg, m00 * au + m01 * mu, m00 * ad + m01 * md
            mg, mu, md = xg, xu, xd
        else:
            ag, au, ad = m00 * ag, m00 * au, m00 * ad
        k_row = tl.load(k + chunk * C * I + ri_at, mask=here[:, None], other=0.0).to(tl.float32)
        v_row = tl.load(v + chunk * C * O + ro_at, mask=here[:, None], other=0.0).to(tl.float32)
        g = load_gate(gate, chunk * C + rr, chunk * C * O + ro_at, here, GATE)

        wait(arrivals, met)
        o = add_up(parts, ro_at, C * O, here[:, None], TILES)
        u, _y, _scale, _e = error(o, k_row, v_row, g, BIAS, P, NORM, RESIDUAL, EPS)
        tl.store(kept_o + local * C * O + ro_at, o, mask=here[:, None])
        tl.store(kept_u2 + local * C * O + ro_at, u.to(DT), mask=here[:, None])
        if BOUND:
            tl.store(squares + (local * 4 + 2) * C + rr, add_up(norms + 2 * TILES * C, rr, C, here, TILES), mask=here)
            tl.store(squares + (local * 4 + 3) * C + rr, tl.sum(u * u, 1), mask=here)
        arrive(arrivals)
        met += TILES
        sg = tl.load(lr + token)
        su, sd = sg, sg
        row0 = tl.load(into + chunk * J * C + rc)
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)

        wait(arrivals, met)
        ud = tl.load(kept_u2 + local * C * O + co, cache_modifier=".cg")
        pulled = dot(ud, add)
        ug, uu = pulled * bend_g, pulled * bend_u
        if BOUND:
            bound = tl.load(inverse + token)
            tl.store(norms + tile * C + rc, tl.sum(ug * ug, 1))
            tl.store(norms + (TILES + tile) * C + rc, tl.sum(uu * uu, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            g_square, u_square = add_up(norms, rc, C, rc < C, TILES), add_up(norms + TILES * C, rc, C, rc < C, TILES)
            kf = kk.to(tl.float32)
            k_square = tl.sum(kf * kf, 1)
            d_square = tl.load(squares + (local * 4 + 2) * C + rc, cache_modifier=".cg")
            d_square *= tl.load(squares + (local * 4 + 3) * C + rc, cache_modifier=".cg")
            sg, su = bounded_rate(sg, bound, k_square * g_square), bounded_rate(su, bound, k_square * u_square)
            sd = bounded_rate(sd, bound, d_square)
            if tile == 0:
                tl.store(squares + local * 4 * C + rc, g_square)
                tl.store(squares + (local * 4 + 1) * C + rc, u_square)
                tl.store(rates + local * 3 * C + rc, sg)
                tl.store(rates + (local * 3 + 1) * C + rc, su)
                tl.store(rates + (local * 3 + 2) * C + rc, sd)
        kt, ut, hf = tl.trans(kk), tl.trans(ud), hd.to(tl.float32)
        ag = dot(kt, (ug * (row0 * sg)[:, None]).to(DT), ag)
        au = dot(kt, (uu * (row0 * su)[:, None]).to(DT), au)
        ad = dot(ut, (hf * (row0 * sd)[:, None]).to(DT), ad)
        if SLOT:
            mg = dot(kt, (ug * (row1 * sg)[:, None]).to(DT), mg)
            mu = dot(kt, (uu * (row1 * su)[:, None]).to(DT), mu)
            md = dot(ut, (hf * (row1 * sd)[:, None]).to(DT), md)

    if end1 is not None:
        end1 += b * end1_stride
        end2 += b * end2_stride
        tl.store(end1 + at1, ag)
        tl.store(end1 + I * F + at1, au)
        tl.store(end2 + at2, ad)
        if SLOT:
            tl.store(end1 + 2 * I * F + at1, mg)
            tl.store(end1 + 3 * I * F + at1, mu)
            tl.store(end2 + F * O + at2, md)

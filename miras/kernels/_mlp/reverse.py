"""Backward through the writes: gradients of the weights travel from the last chunk to the first, in registers.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import both, load_bias_rates, load_biases, mixed, store_biases
from miras.kernels._mlp.blocks import set_aside, take_back
from miras.kernels._mlp.gains import copy_gains, earlier_gains, gained_error, gained_error_vjp, written_gains_vjp
from miras.kernels._mlp.halves import HALF, store_pulled
from miras.kernels._mlp.links import link_vjp, multiplier, shared, slope, tell_back, whole
from miras.kernels._mlp.meetings import add_up, arrive, enter, own_rows, wait
from miras.kernels._mlp.parts import bounded_vjp, clipped, dot, error, error_vjp, load_gate, load_rates


@triton.jit(do_not_specialize=["first", "count", "total"])
def reverse(
    k, v, gate, lr, inverse, mix, into,  # [b, total C, ...]
    seen2, kept_o, kept_u2, squares,  # of the chunks at hand, [b, count, ...]
    h_, slope_, turn_, u1_, hr_, d_h, d_u1, d_zr, d_u2, d_rates, sent,
    d_w1, d_w2,  # of the stacks after the last chunk; then of those before the first
    late1, late2, dz_, d_o_,  # of every chunk: gradients of the stacks after it, of z and of o
    d_k, d_v, d_gate,  # results [b, total C, ...]; d_k is added to
    seen1, sizes,  # under a link, of the chunks at hand: weights before it; norms
    rows, d_biases, late_b, rates_b,  # with fast biases: what readers multiply them with; gradients as of the stacks
    seen_g, d_seen_g, d_errors_g, d_gains, late_g,  # with fast gains: before the chunks; gradients, first from what queries read
    parts, norms, meet, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    LIMIT: tl.constexpr, SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr, BIASES: tl.constexpr, GAINS: tl.constexpr,
    BIAS: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr, BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of ``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` and of the errors at the anchor.

    Under a link gradients of the accumulators travel; those of a chunk's weights are gathered beside them.
    """
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b, tile, arrivals = enter(tickets, TILES)
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], ro[:, None] * F + rf[None, :]
    ci, co, cf = rc[:, None] * I + ri[None, :], rc[:, None] * O + ro[None, :], rc[:, None] * F + rf[None, :]
    rr, here, ro_at, ri_at = own_rows(tile, ROWS, C, I, O)
    SENT: tl.constexpr = C * max(I, O)
    parts += b * TILES * C * O
    SUMS: tl.constexpr = 3 if BIASES else 2
    norms += b * SUMS * TILES * C
    met = 0

    e1, e2 = tl.load(d_w1 + b * J * I * F + at1), tl.load(d_w2 + b * J * F * O + at2)
    if SLOT:
        f1, f2 = tl.load(d_w1 + (b * J + 1) * I * F + at1), tl.load(d_w2 + (b * J + 1) * F * O + at2)
    if BIASES:
        b1, b2, c1, c2 = load_biases(d_biases + b * J * (F + O), rf, ro, F, O, SLOT)
    if BLOCKS > 1:
        tl.debug_barrier()
        tl.store(d_w1 + b * J * I * F + at1, tl.zeros_like(e1))
        tl.store(d_w2 + b * J * F * O + at2, tl.zeros_like(e2))
    if GAINS:
        told_g = meet + (b * TILES + tile) * 4 * J * O
        mine_g = told_g + 2 * J * O
        copy_gains(d_gains + b * J * 2 * O, mine_g, ro, O, SLOT)

    for back in range(count):
        n = count - 1 - back
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        wide = local * C * F + cf
        s1, s2 = load_rates(lr, squares, token, local, rc, C, BOUND)

        if LINK > 0:
            n1, n2 = tl.load(sizes + local * 2), tl.load(sizes + local * 2 + 1)
            m1, m2, g1, g2 = multiplier(n1, LINK, L), multiplier(n2, LINK, L), slope(n1, LINK, L), slope(n2, LINK, L)
            r1, r2 = tl.load(d_rates + local * 2 * C + rc), tl.load(d_rates + (local * 2 + 1) * C + rc)
            d_m1, d_m2, d_g1, d_g2 = tl.sum(r1 * s1, 0), tl.sum(r2 * s2, 0), 0.0, 0.0

        # the writes, before what the other tiles add
        kk, u2 = tl.load(k + chunk * C * I + ci), tl.load(kept_u2 + local * C * O + co)
        row0 = tl.load(into + chunk * J * C + rc)[:, None]
        row1 = row0
        e1d, e2d = e1.to(DT), e2.to(DT)
        tl.store(late1 + local * J * I * F + at1, e1d)
        tl.store(late2 + local * J * F * O + at2, e2d)
        du1, dh = row0 * dot(kk, e1d), row0 * dot(u2, e2d)
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)[:, None]
            f1d, f2d = f1.to(DT), f2.to(DT)
            tl.store(late1 + (local * J + 1) * I * F + at1, f1d)
            tl.store(late2 + (local * J + 1) * F * O + at2, f2d)
            du1 += row1 * dot(kk, f1d)
            dh += row1 * dot(u2, f2d)
        if BIASES:
            late1_rows = both(row0, row1, b1, c1, SLOT)
            t1, _t2 = load_bias_rates(rates_b, local, rc, C)
        hh = tl.load(h_ + wide)
        if BOUND:
            hf, kf = hh.to(tl.float32), kk.to(tl.float32)
            u1 = tl.load(u1_ + wide).to(tl.float32)
            tl.store(norms + tile * C + rc, tl.sum(u1 * du1, 1))
            tl.store(norms + (TILES + tile) * C + rc, tl.sum(hf * dh, 1))
            if BIASES:
                tl.store(norms + (2 * TILES + tile) * C + rc, tl.sum(u1 * late1_rows, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            rate, bound = tl.load(lr + token), tl.load(inverse + token)
            h_square, u1_square = tl.load(squares + local * 5 * C + rc), tl.load(squares + (local * 5 + 1) * C + rc)
            u2_square, k_square = tl.load(squares + (local * 5 + 2) * C + rc), tl.sum(kf * kf, 1)
            bound1, bound2 = bound, bound
            if LINK > 0:
                d_s1 = m1 * r1 + add_up(norms, rc, C, rc < C, TILES)
                d_s2 = m2 * r2 + add_up(norms + TILES * C, rc, C, rc < C, TILES)
                bound1, bound2 = bound * g1, bound * g2
            else:
                d_s1 = tl.load(d_rates + local * 2 * C + rc) + add_up(norms, rc, C, rc < C, TILES)
                d_s2 = tl.load(d_rates + (local * 2 + 1) * C + rc) + add_up(norms + TILES * C, rc, C, rc < C, TILES)
            _lr, _bound, d_square = bounded_vjp(d_s1, rate, bound1, k_square * u1_square)
            if LINK > 0:
                d_g1 = tl.sum(_bound * bound, 0)
            du1 = du1 * s1[:, None] + (d_square * k_square)[:, None] * u1
            _lr, _bound, d_square = bounded_vjp(d_s2, rate, bound2, h_square * u2_square)
            if LINK > 0:
                d_g2 = tl.sum(_bound * bound, 0)
            dh = dh * s2[:, None] + (d_square * u2_square)[:, None] * hf
            if BIASES:
                d_t1 = tl.load(rates_b + (local * 4 + 2) * C + rc) + add_up(norms + 2 * TILES * C, rc, C, rc < C, TILES)
                _lr, _bound, d_square = bounded_vjp(d_t1, rate, bound, u1_square)
                du1 += d_square[:, None] * u1
        else:
            du1 *= s1[:, None]
            dh *= s2[:, None]
        if BIASES:
            du1 += t1[:, None] * late1_rows
        du1 += tl.load(d_u1 + wide).to(tl.float32)
        bend = tl.load(slope_ + wide).to(tl.float32)
        d_pulled = (du1 * bend).to(DT)
        if O > HALF:  # what was stored of the second matrix is read again, in the place of transposing it
            a2_at = seen2 + (local - n % BLOCKS) * J * F * O
            tl.debug_barrier()  # what is stored at late2 is read again
            store_pulled(
                parts + tile * C * O, d_pulled, a2_at, hh, row0 * s2[:, None], row1 * s2[:, None],
                late2 + local * J * F * O, rf, C, O, F, SLOT,
            )  # fmt: skip
        else:
            part = (row0 * s2[:, None]) * dot(hh, tl.trans(e2d))
            if SLOT:
                part += (row1 * s2[:, None]) * dot(hh, tl.trans(f2d))
            a2 = tl.load(seen2 + (local - n % BLOCKS) * J * F * O + at2)
            part = shared(du1 * bend, dot(d_pulled, tl.trans(a2), part), 1, LINK, L, WIDTH=WIDTH)
            tl.store(parts + tile * C * O + co, part)
        arrive(arrivals)
        met += TILES

        # what does not wait for the others: mixing, and what the queries sent
        dz = du1 * tl.load(turn_ + wide).to(tl.float32) + (dh + tl.load(d_h + wide).to(tl.float32)) * bend
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            x1, x2 = m01 * e1 + m11 * f1, m01 * e2 + m11 * f2
            e1, e2 = m00 * e1 + m10 * f1, m00 * e2 + m10 * f2
            f1, f2 = x1, x2
        else:
            e1, e2 = m00 * e1, m00 * e2
        if BIASES:
            store_biases(late_b + local * J * (F + O), b1, b2, c1, c2, rf, ro, tile, F, O, SLOT)
            mine0 = tl.load(into + chunk * J * C + rr, mask=here, other=0.0)[:, None]
            mine1 = tl.load(into + chunk * J * C + (J - 1) * C + rr, mask=here, other=0.0)[:, None]
            late2_rows = both(mine0, mine1, b2, c2, SLOT)
            b1, b2, c1, c2 = mixed(b1, b2, c1, c2, mix + chunk * J * J, True, SLOT)
        if LINK > 0:  # set aside, where the result will be
            tl.store(d_w1 + b * J * I * F + at1, e1)
            tl.store(d_w2 + b * J * F * O + at2, e2)
            e1, e2 = tl.zeros_like(e1), tl.zeros_like(e2)
        dzr, hr = tl.load(d_zr + wide), tl.load(hr_ + wide)
        told = sent + local * 2 * J * SENT
        e1 = dot(tl.trans(tl.load(told + ci)), dzr, e1)
        e2 = dot(tl.trans(tl.load(told + J * SENT + co)), hr, e2)
        if SLOT:
            f1 = dot(tl.trans(tl.load(told + SENT + ci)), dzr, f1)
            f2 = dot(tl.trans(tl.load(told + 3 * SENT + co)), hr, f2)
        if BIASES:
            dzf = dzr.to(tl.float32)
            b1 += tl.sum(dzf * tl.load(rows + chunk * J * C + rc)[:, None], 0)
            b2 += tl.sum(tl.load(told + J * SENT + co).to(tl.float32), 0)
            if SLOT:
                c1 += tl.sum(dzf * tl.load(rows + chunk * J * C + C + rc)[:, None], 0)
                c2 += tl.sum(tl.load(told + 3 * SENT + co).to(tl.float32), 0)
        if BLOCKS > 1:
            e1, e2 = set_aside(d_w1 + b * J * I * F + at1, e1), set_aside(d_w2 + b * J * F * O + at2, e2)
        e2 = dot(tl.trans(u2), d_pulled, e2)

        # the tap: u1 = (u2 W2^T) act'(z), u2 = error(o), o = h W2, h = act(z), z = k W1
        k_row = tl.load(k + chunk * C * I + ri_at, mask=here[:, None], other=0.0).to(tl.float32)
        v_row = tl.load(v + chunk * C * O + ro_at, mask=here[:, None], other=0.0).to(tl.float32)
        o_row = tl.load(kept_o + local * C * O + ro_at, mask=here[:, None], other=0.0)
        g = load_gate(gate, chunk * C + rr, chunk * C * O + ro_at, here, GATE)
        if GAINS:
            had = seen_g + local * J * 2 * O
            u_row, y, scale, e = gained_error(o_row, k_row, v_row, g, had, ro, O, BIAS, P, RESIDUAL, EPS)
        else:
            u_row, y, scale, e = error(o_row, k_row, v_row, g, BIAS, P, NORM, RESIDUAL, EPS, WIDTH)
        du2 = tl.load(d_u2 + local * C * O + ro_at, mask=here[:, None], other=0.0)
        if BOUND:
            rate = tl.load(lr + chunk * C + rr, mask=here, other=0.0)
            bound = tl.load(inverse + chunk * C + rr, mask=here, other=0.0)
            h_square = tl.load(squares + local * 5 * C + rr, mask=here, other=0.0)
            u2_square = tl.load(squares + (local * 5 + 2) * C + rr, mask=here, other=0.0)
            d_s2 = tl.load(d_rates + (local * 2 + 1) * C + rr, mask=here, other=0.0)
            if LINK > 0:
                d_s2, bound = m2 * d_s2, g2 * bound
            d_s2 += add_up(norms + TILES * C, rr, C, here, TILES)
            _lr, _bound, d_square = bounded_vjp(d_s2, rate, bound, h_square * u2_square)
            du2 += (d_square * h_square)[:, None] * u_row
            if BIASES:
                d_t2 = tl.load(rates_b + (local * 4 + 3) * C + rr, mask=here, other=0.0) + tl.sum(u_row * late2_rows, 1)
                _lr, _bound, d_square = bounded_vjp(d_t2, rate, bound, u2_square)
                du2 += d_square[:, None] * u_row
        wait(arrivals, met)
        du2 += add_up(parts, ro_at, C * O, here[:, None], TILES)
        if BIASES:
            du2 += tl.load(rates_b + (local * 4 + 1) * C + rr, mask=here, other=0.0)[:, None] * late2_rows
        if GAINS:
            if tile == 0:
                copy_gains(mine_g, late_g + local * J * 2 * O, ro, O, SLOT)
            near_y, near_e = written_gains_vjp(
                e, y, mine_g, d_errors_g + local * C * 2 * O, lr, inverse, into + chunk * J * C, chunk * C,
                rr, ro, here, C, O, SLOT, BOUND,
            )  # fmt: skip
            d_o, d_answer, dv, dg = gained_error_vjp(
                du2, near_y, near_e, u_row, y, scale, e, k_row, v_row, g, had, told_g, ro, here, O, VJP, P, RESIDUAL
            )
        else:
            d_o, d_answer, dv, dg = error_vjp(du2, u_row, y, scale, e, k_row, v_row, g, VJP, P, NORM, RESIDUAL, WIDTH)
        tl.store(d_o_ + local * C * O + ro_at, d_o.to(DT), mask=here[:, None])
        arrive(arrivals)
        met += TILES
        tl.store(d_v + chunk * C * O + ro_at, dv, mask=here[:, None])
        if GATE == 1:
            tl.store(d_gate + chunk * C + rr, tl.sum(dg, 1), mask=here)
        if GATE == 2:
            tl.store(d_gate + chunk * C * O + ro_at, dg, mask=here[:, None])
        if RESIDUAL:
            near = tl.load(d_k + chunk * C * I + ri_at, mask=here[:, None], other=0.0)
            tl.store(d_k + chunk * C * I + ri_at, near + d_answer, mask=here[:, None])

        wait(arrivals, met)
        d_od = tl.load(d_o_ + local * C * O + co, cache_modifier=".cg")
        if O > HALF:
            a2 = tl.load(a2_at + at2)
        dzd = (dz + shared(d_od, dot(d_od, a2), 1, LINK, L, NORM) * bend).to(DT)
        tl.store(dz_ + wide, dzd)
        e1 = dot(tl.trans(kk), dzd, e1)
        e2 = dot(tl.trans(d_od), tl.load(h_ + wide), e2)
        if BLOCKS > 1:
            e1 = take_back(d_w1 + b * J * I * F + at1, e1, n, BLOCKS)
            e2 = take_back(d_w2 + b * J * F * O + at2, e2, n, BLOCKS)
        if BIASES:
            b1 += tl.sum(dzd.to(tl.float32), 0)
            b2 += tl.sum(d_od.to(tl.float32), 0)
        if GAINS:
            earlier_gains(
                mine_g, meet + b * TILES * 4 * J * O, mix + chunk * J * J, d_seen_g + local * J * 2 * O, ro, O, SLOT,
                BOUND, LIMIT, TILES,
            )  # fmt: skip
        if LINK > 0:
            l1, l2 = whole(tl.load(seen1 + local * J * I * F + at1), 0, LINK, L), whole(a2, 1, LINK, L)
            tell_back(e1, e2, l1, l2, meet + (b * TILES + tile) * 2 * O, O, LINK)
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            e1, e2 = link_vjp(
                e1, e2, l1, l2, n1, n2, d_m1, d_m2, d_g1, d_g2, meet + b * TILES * 2 * O, O, TILES, LINK, L
            )
            e1 += tl.load(d_w1 + b * J * I * F + at1)
            e2 += tl.load(d_w2 + b * J * F * O + at2)
        if BOUND:  # noqa: SIM102  # one is known when it is compiled, the other is not
            if n % BLOCKS == 0:
                e1, e2 = clipped(e1, LIMIT), clipped(e2, LIMIT)
                if SLOT:
                    f1, f2 = clipped(f1, LIMIT), clipped(f2, LIMIT)
                if BIASES:
                    b1, b2 = clipped(b1, LIMIT), clipped(b2, LIMIT)
                    if SLOT:
                        c1, c2 = clipped(c1, LIMIT), clipped(c2, LIMIT)

    if BLOCKS > 1:
        tl.debug_barrier()
    tl.store(d_w1 + b * J * I * F + at1, e1)
    tl.store(d_w2 + b * J * F * O + at2, e2)
    if SLOT:
        tl.store(d_w1 + (b * J + 1) * I * F + at1, f1)
        tl.store(d_w2 + (b * J + 1) * F * O + at2, f2)
    if BIASES:
        store_biases(d_biases + b * J * (F + O), b1, b2, c1, c2, rf, ro, tile, F, O, SLOT)
    if GAINS:
        tl.debug_barrier()
        if tile == 0:
            copy_gains(mine_g, d_gains + b * J * 2 * O, ro, O, SLOT)

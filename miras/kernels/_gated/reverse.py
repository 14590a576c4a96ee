"""Backward through the writes: gradients of the weights travel from the last chunk to the first, in registers.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._gated.parts import load_rate
from miras.kernels._mlp.meetings import add_up, arrive, enter, own_rows, wait
from miras.kernels._mlp.parts import bounded_vjp, clipped, dot, error, error_vjp, load_gate


@triton.jit(do_not_specialize=["first", "count", "total"])
def reverse(
    k, v, gate, lr, inverse, mix, into,  # [b, total C, ...]
    seen2, kept_o, kept_u2, squares, rates,  # of the chunks at hand, [b, count, ...]
    h_, hr_, d_h, bend_, turn_, u1_, d_u1, d_zr, d_u2, d_rates, sent,
    d_w1, d_w2,  # of the stacks after the last chunk; then of those before the first
    late1, late2, dz_, d_o_,  # of every chunk: gradients of the stacks after it, of z and x, and of o
    d_k, d_v, d_gate,  # results [b, total C, ...]; d_k is added to
    parts, norms, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, ROWS: tl.constexpr,
    LIMIT: tl.constexpr, SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` and of the errors at the anchor."""
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
    norms += b * 3 * TILES * C
    met = 0

    d_w1 += b * J * 2 * I * F + at1
    d_w2 += b * J * F * O + at2
    eg, eu, ed = tl.load(d_w1), tl.load(d_w1 + I * F), tl.load(d_w2)
    if SLOT:
        fg, fu, fd = tl.load(d_w1 + 2 * I * F), tl.load(d_w1 + 3 * I * F), tl.load(d_w2 + F * O)

    for back in range(count):
        n = count - 1 - back
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        wide = local * C * F + cf
        wide_g = wide + local * C * F
        wide_u = wide_g + C * F
        sg = load_rate(lr, rates, token, local, rc, 0, C, BOUND)[:, None]
        su = load_rate(lr, rates, token, local, rc, 1, C, BOUND)[:, None]
        sd = load_rate(lr, rates, token, local, rc, 2, C, BOUND)[:, None]

        # the writes, before what the other tiles add
        kk, u = tl.load(k + chunk * C * I + ci), tl.load(kept_u2 + local * C * O + co)
        row0 = tl.load(into + chunk * J * C + rc)[:, None]
        egd, eud, edd = eg.to(DT), eu.to(DT), ed.to(DT)
        after1, after2 = late1 + local * J * 2 * I * F + at1, late2 + local * J * F * O + at2
        tl.store(after1, egd)
        tl.store(after1 + I * F, eud)
        tl.store(after2, edd)
        dug, duu, dh = row0 * dot(kk, egd), row0 * dot(kk, eud), row0 * dot(u, edd)
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)[:, None]
            fgd, fud, fdd = fg.to(DT), fu.to(DT), fd.to(DT)
            tl.store(after1 + 2 * I * F, fgd)
            tl.store(after1 + 3 * I * F, fud)
            tl.store(after2 + F * O, fdd)
            dug, duu, dh = dug + row1 * dot(kk, fgd), duu + row1 * dot(kk, fud), dh + row1 * dot(u, fdd)
        hh = tl.load(h_ + wide)
        if BOUND:
            hf, kf = hh.to(tl.float32), kk.to(tl.float32)
            ug, uu = tl.load(u1_ + wide_g).to(tl.float32), tl.load(u1_ + wide_u).to(tl.float32)
            tl.store(norms + tile * C + rc, tl.sum(ug * dug, 1))
            tl.store(norms + (TILES + tile) * C + rc, tl.sum(uu * duu, 1))
            tl.store(norms + (2 * TILES + tile) * C + rc, tl.sum(hf * dh, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            rate, bound, k_square = tl.load(lr + token), tl.load(inverse + token), tl.sum(kf * kf, 1)
            square, d_s = squares + local * 4 * C + rc, d_rates + local * 3 * C + rc
            d_sg = tl.load(d_s) + add_up(norms, rc, C, rc < C, TILES)
            d_su = tl.load(d_s + C) + add_up(norms + TILES * C, rc, C, rc < C, TILES)
            d_sd = tl.load(d_s + 2 * C) + add_up(norms + 2 * TILES * C, rc, C, rc < C, TILES)
            _lr, _bound, d_square = bounded_vjp(d_sg, rate, bound, k_square * tl.load(square))
            dug = dug * sg + (d_square * k_square)[:, None] * ug
            _lr, _bound, d_square = bounded_vjp(d_su, rate, bound, k_square * tl.load(square + C))
            duu = duu * su + (d_square * k_square)[:, None] * uu
            u_square = tl.load(square + 3 * C)
            _lr, _bound, d_square = bounded_vjp(d_sd, rate, bound, tl.load(square + 2 * C) * u_square)
            dh = dh * sd + (d_square * u_square)[:, None] * hf
        else:
            dug, duu, dh = dug * sg, duu * su, dh * sd
        dug += tl.load(d_u1 + wide_g).to(tl.float32)
        duu += tl.load(d_u1 + wide_u).to(tl.float32)
        dh += tl.load(d_h + wide).to(tl.float32)
        bend_g, bend_u = tl.load(bend_ + wide_g).to(tl.float32), tl.load(bend_ + wide_u).to(tl.float32)
        d_pulled = (dug * bend_g + duu * bend_u).to(DT)
        part = (row0 * sd) * dot(hh, tl.trans(edd))
        if SLOT:
            part += (row1 * sd) * dot(hh, tl.trans(fdd))
        ad = tl.load(seen2 + local * J * F * O + at2)
        tl.store(parts + tile * C * O + co, dot(d_pulled, tl.trans(ad), part))
        arrive(arrivals)
        met += TILES

        # what does not wait for the others: mixing, and what the queries sent
        turn_g, turn_u = tl.load(turn_ + wide_g).to(tl.float32), tl.load(turn_ + wide_u).to(tl.float32)
        dz, dx = dug * turn_g + duu * turn_u + dh * bend_g, dug * turn_u + dh * bend_u
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            xg, xu, xd = m01 * eg + m11 * fg, m01 * eu + m11 * fu, m01 * ed + m11 * fd
            eg, eu, ed = m00 * eg + m10 * fg, m00 * eu + m10 * fu, m00 * ed + m10 * fd
            fg, fu, fd = xg, xu, xd
        else:
            eg, eu, ed = m00 * eg, m00 * eu, m00 * ed
        dzr, dxr, hr = tl.load(d_zr + wide_g), tl.load(d_zr + wide_u), tl.load(hr_ + wide)
        told = sent + local * 2 * J * SENT
        qt = tl.trans(tl.load(told + ci))
        eg, eu = dot(qt, dzr, eg), dot(qt, dxr, eu)
        ed = dot(tl.trans(tl.load(told + J * SENT + co)), hr, ed)
        if SLOT:
            qt = tl.trans(tl.load(told + SENT + ci))
            fg, fu = dot(qt, dzr, fg), dot(qt, dxr, fu)
            fd = dot(tl.trans(tl.load(told + 3 * SENT + co)), hr, fd)
        ed = dot(tl.trans(u), d_pulled, ed)

        # the error at o
        k_row = tl.load(k + chunk * C * I + ri_at, mask=here[:, None], other=0.0).to(tl.float32)
        v_row = tl.load(v + chunk * C * O + ro_at, mask=here[:, None], other=0.0).to(tl.float32)
        o_row = tl.load(kept_o + local * C * O + ro_at, mask=here[:, None], other=0.0)
        g = load_gate(gate, chunk * C + rr, chunk * C * O + ro_at, here, GATE)
        u_row, y, scale, e = error(o_row, k_row, v_row, g, BIAS, P, NORM, RESIDUAL, EPS)
        du = tl.load(d_u2 + local * C * O + ro_at, mask=here[:, None], other=0.0)
        if BOUND:
            rate = tl.load(lr + chunk * C + rr, mask=here, other=0.0)
            bound = tl.load(inverse + chunk * C + rr, mask=here, other=0.0)
            h_square = tl.load(squares + (local * 4 + 2) * C + rr, mask=here, other=0.0)
            u_square = tl.load(squares + (local * 4 + 3) * C + rr, mask=here, other=0.0)
            d_sd = tl.load(d_rates + (local * 3 + 2) * C + rr, mask=here, other=0.0)
            d_sd += add_up(norms + 2 * TILES * C, rr, C, here, TILES)
            _lr, _bound, d_square = bounded_vjp(d_sd, rate, bound, h_square * u_square)
            du += (d_square * h_square)[:, None] * u_row
        wait(arrivals, met)
        du += add_up(parts, ro_at, C * O, here[:, None], TILES)
        d_o, d_answer, dv, dg = error_vjp(du, u_row, y, scale, e, k_row, v_row, g, VJP, P, NORM, RESIDUAL)
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
        dh = dot(d_od, ad)
        bend_g, bend_u = tl.load(bend_ + wide_g).to(tl.float32), tl.load(bend_ + wide_u).to(tl.float32)
        dzd, dxd = (dz + dh * bend_g).to(DT), (dx + dh * bend_u).to(DT)
        tl.store(dz_ + wide_g, dzd)
        tl.store(dz_ + wide_u, dxd)
        kt = tl.trans(kk)
        eg, eu = dot(kt, dzd, eg), dot(kt, dxd, eu)
        ed = dot(tl.trans(d_od), tl.load(h_ + wide), ed)
        if BOUND:
            eg, eu, ed = clipped(eg, LIMIT), clipped(eu, LIMIT), clipped(ed, LIMIT)
            if SLOT:
                fg, fu, fd = clipped(fg, LIMIT), clipped(fu, LIMIT), clipped(fd, LIMIT)

    tl.store(d_w1, eg)
    tl.store(d_w1 + I * F, eu)
    tl.store(d_w2, ed)
    if SLOT:
        tl.store(d_w1 + 2 * I * F, fg)
        tl.store(d_w1 + 3 * I * F, fu)
        tl.store(d_w2 + F * O, fd)

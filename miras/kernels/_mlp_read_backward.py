"""Backward through what queries read, all chunks at once.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import bounded_rate, dot, error, layer_norm_vjp, load_gate


@triton.jit(do_not_specialize=["first", "count", "total"])
def read_backward(
    q, k, v, gate, lr, inverse, carry, pairs, slot, out, d_answer,  # [b, total C, ...]
    seen1, seen2, kept_o, squares,  # of the chunks at hand, [b, count, ...]
    d_q, d_k, d_carry, d_slot, d_pairs, d_out,  # results [b, total C, ...]
    h_, slope_, turn_, u1_, hr_, d_h, d_u1, d_zr, d_u2, d_rates,  # for the reverse scan, [b, count, ...]
    scratch,  # [b, count, 2, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``out = rows (hr W2) - (pairs s2 hr h^T) u2`` and of ``zr = rows (q W1) - (pairs s1 q k^T) u1``."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b = (tl.program_id(0) // count).to(tl.int64)
    n = tl.program_id(0) % count
    chunk, local = b * total + first + n, b * count + n
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    cc, cc_t = rc[:, None] * C + rc[None, :], rc[None, :] * C + rc[:, None]

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    kf, qf = kk.to(tl.float32), qq.to(tl.float32)
    d = tl.load(d_answer + co).to(tl.float32)
    if NORM:
        d = layer_norm_vjp(d, tl.load(out + co), EPS)
    dd = d.to(DT)
    tl.store(d_out + co, dd)
    o = tl.load(kept_o + local * C * O + rc[:, None] * O + ro[None, :])
    g = load_gate(gate, token, co, GATE)
    u2, y, scale, e = error(o, kf, tl.load(v + co).to(tl.float32), g, BIAS, P, NORM, RESIDUAL, EPS)
    u2d = u2.to(DT)
    s1 = tl.load(lr + token)
    s2 = s1
    if BOUND:
        bound = tl.load(inverse + token)
        h_square, u1_square = tl.load(squares + local * 2 * C + rc), tl.load(squares + local * 2 * C + C + rc)
        s2, norm2 = bounded_rate(s1, bound, h_square, tl.sum(u2 * u2, 1), BOUND)
        s1, norm1 = bounded_rate(s1, bound, tl.sum(kf * kf, 1), u1_square, BOUND)

    weight, weight_t = tl.load(pairs + chunk * C * C + cc), tl.load(pairs + chunk * C * C + cc_t)
    p1 = (-(dot(qq, tl.trans(kk)) * weight * s1[None, :])).to(DT)
    p1_t = (-(dot(kk, tl.trans(qq)) * weight_t * s1[:, None])).to(DT)
    d_scores2 = (-(dot(dd, tl.trans(u2d)) * weight * s2[None, :])).to(DT)
    d_scores2_t = (-(dot(u2d, tl.trans(dd)) * weight_t * s2[:, None])).to(DT)
    row0 = tl.load(carry + token)[:, None]
    q0 = (qf * row0).to(DT)
    rows0 = tl.zeros([C], tl.float32)
    dq0 = tl.zeros([C, I], tl.float32)
    if SLOT:
        row1 = -tl.load(slot + token)[:, None]
        q1 = (qf * row1).to(DT)
        rows1 = tl.zeros([C], tl.float32)
        dq1 = tl.zeros([C, I], tl.float32)
    scores2, pulled1 = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        a1, a2 = tl.load(seen1 + at1), tl.load(seen2 + at2)
        h, slope, curve = ACT(dot(kk, a1))
        hd = h.to(DT)
        pulled = dot(u2d, a2)
        u1 = (pulled * slope).to(DT)
        tl.store(h_ + cf, hd)
        tl.store(slope_ + cf, slope.to(DT))
        tl.store(turn_ + cf, (pulled * curve).to(DT))
        tl.store(u1_ + cf, u1)
        zr = dot(p1, u1, dot(q0, a1))
        if SLOT:
            m1 = tl.load(seen1 + I * F + at1)
            zr = dot(q1, m1, zr)
        hr, slope_r, curve_r = ACT(zr)
        hrd = hr.to(DT)
        tl.store(hr_ + cf, hrd)
        scores2 = dot(hrd, tl.trans(hd), scores2)
        seen = dot(dd, a2)
        rows0 += tl.sum(hr * seen, 1)
        d_hr = row0 * seen
        if SLOT:
            seen = dot(dd, tl.load(seen2 + F * O + at2))
            rows1 += tl.sum(hr * seen, 1)
            d_hr += row1 * seen
        dz = (dot(d_scores2, hd, d_hr) * slope_r).to(DT)
        tl.store(d_h + cf, dot(d_scores2_t, hrd).to(DT))
        tl.store(d_zr + cf, dz)
        tl.store(d_u1 + cf, dot(p1_t, dz).to(DT))
        pulled1 = dot(dz, tl.trans(u1), pulled1)
        dq0 = dot(dz, tl.trans(a1), dq0)
        if SLOT:
            dq1 = dot(dz, tl.trans(m1), dq1)

    # products with a transposed sum go through memory: not every compiler transposes the registers of a sum
    scaled1, scaled2 = weight * s1[None, :], weight * s2[None, :]
    d_scores1 = (-scaled1 * pulled1).to(DT)
    tl.store(scratch + local * 2 * C * C + cc, d_scores1)
    tl.store(scratch + (local * 2 + 1) * C * C + cc, (-scaled2 * scores2).to(DT))
    qf = tl.load(q + ci).to(tl.float32)
    rows0 += tl.sum(qf * dq0, 1)
    dq = row0 * dq0
    if SLOT:
        rows1 += tl.sum(qf * dq1, 1)
        dq += row1 * dq1
    dq = dot(d_scores1, kk, dq)
    if RESIDUAL:
        dq += tl.load(d_answer + co).to(tl.float32)
    tl.store(d_q + ci, dq)
    tl.store(d_carry + token, rows0)
    if SLOT:
        tl.store(d_slot + token, -rows1)
    tl.debug_barrier()
    tl.store(d_k + ci, dot(tl.load(scratch + local * 2 * C * C + cc_t), qq))
    du2 = dot(tl.load(scratch + (local * 2 + 1) * C * C + cc_t), dd)
    tl.store(d_u2 + local * C * O + rc[:, None] * O + ro[None, :], du2)
    d_weight1 = dot(qq, tl.trans(kk)) * pulled1
    d_weight2 = dot(dd, tl.trans(u2d)) * scores2
    tl.store(d_pairs + chunk * C * C + cc, -(d_weight1 * s1[None, :] + d_weight2 * s2[None, :]))
    tl.store(d_rates + local * 2 * C + rc, -tl.sum(d_weight1 * weight, 0))
    tl.store(d_rates + local * 2 * C + C + rc, -tl.sum(d_weight2 * weight, 0))

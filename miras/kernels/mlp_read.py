"""Backward through what queries read, all chunks at once.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels.mlp_parts import bounded_rate, error
from miras.kernels.mlp_scan import dot


@triton.jit(do_not_specialize=["first", "count", "total"])
def read_backward(
    q, k, v, gate, lr, inverse, carry, pairs, slot, d_out,  # [b, total C, ...]
    seen1, seen2, kept_o, squares,  # of the chunks at hand, [b, count, ...]
    d_q, d_k, d_carry, d_slot, d_pairs,  # results [b, total C, ...]
    d_h, d_u1, d_zr, hr_, d_u2, d_rates,  # for the reverse scan, [b, count, ...]
    scratch,  # [b, count, 2, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``out = rows (hr W2) - (pairs s2 hr h^T) u2`` and of ``zr = rows (q W1) - (pairs s1 q k^T) u1``."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b = (tl.program_id(0) // count).to(tl.int64)
    n = tl.program_id(0) % count
    chunk = b * total + first + n
    local = b * count + n
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    cc, cc_t = rc[:, None] * C + rc[None, :], rc[None, :] * C + rc[:, None]

    qq, kk, dd = tl.load(q + ci), tl.load(k + ci), tl.load(d_out + co)
    kf = kk.to(tl.float32)
    g = 0.0
    if GATE == 1:
        g = tl.load(gate + token)[:, None]
    if GATE == 2:
        g = tl.load(gate + co)
    vv = tl.load(v + co).to(tl.float32)
    o = tl.load(kept_o + local * C * O + rc[:, None] * O + ro[None, :])
    u2, _, _, _ = error(o, kf, vv, g, BIAS, P, NORM, RESIDUAL, EPS)
    u2d = u2.to(DT)
    s1 = tl.load(lr + token)
    s2 = s1
    if BOUND:
        bound = tl.load(inverse + token)
        h_square, u1_square = tl.load(squares + local * 2 * C + rc), tl.load(squares + local * 2 * C + C + rc)
        s2, _ = bounded_rate(s1, bound, h_square, tl.sum(u2 * u2, 1), BOUND)
        s1, _ = bounded_rate(s1, bound, tl.sum(kf * kf, 1), u1_square, BOUND)

    weight, weight_t = tl.load(pairs + chunk * C * C + cc), tl.load(pairs + chunk * C * C + cc_t)
    p1 = (dot(qq, tl.trans(kk)) * weight * s1[None, :]).to(DT)
    p1_t = (dot(kk, tl.trans(qq)) * weight_t * s1[:, None]).to(DT)
    d_scores2 = (dot(dd, tl.trans(u2d)) * weight * s2[None, :]).to(DT)
    d_scores2_t = (dot(u2d, tl.trans(dd)) * weight_t * s2[:, None]).to(DT)
    row0 = tl.load(carry + token)[:, None]
    rows0 = tl.zeros([C], tl.float32)
    if SLOT:
        row1 = -tl.load(slot + token)[:, None]
        rows1 = tl.zeros([C], tl.float32)
    scores2, pulled1 = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    dq = tl.zeros([C, I], tl.float32)
    for f in range(0, F, BF):
        rf = f + rb
        at1 = local * J * I * F + ri[:, None] * F + rf[None, :]
        at2 = local * J * F * O + ro[:, None] * F + rf[None, :]
        cf = local * C * F + rc[:, None] * F + rf[None, :]
        a1, a2 = tl.load(seen1 + at1), tl.load(seen2 + at2)
        h, slope, _ = ACT(dot(kk, a1))
        u1 = (dot(u2d, a2) * slope).to(DT)
        hd = h.to(DT)
        q1, d2 = dot(qq, a1), dot(dd, a2)
        zr = row0 * q1 - dot(p1, u1)
        d_hr = row0 * d2 - dot(d_scores2, hd)
        if SLOT:
            m1, m2 = tl.load(seen1 + I * F + at1), tl.load(seen2 + F * O + at2)
            qm, dm = dot(qq, m1), dot(dd, m2)
            zr += row1 * qm
            d_hr += row1 * dm
        hr, slope_r, _ = ACT(zr)
        hrd = hr.to(DT)
        dz = d_hr * slope_r
        dzd = dz.to(DT)
        scores2 += dot(hrd, tl.trans(hd))
        pulled1 += dot(dzd, tl.trans(u1))
        rows0 += tl.sum(hr * d2 + dz * q1, 1)
        dq += dot((row0 * dz).to(DT), tl.trans(a1))
        if SLOT:
            rows1 += tl.sum(hr * dm + dz * qm, 1)
            dq += dot((row1 * dz).to(DT), tl.trans(m1))
        tl.store(hr_ + cf, hrd)
        tl.store(d_zr + cf, dzd)
        tl.store(d_h + cf, (-dot(d_scores2_t, hrd)).to(DT))
        tl.store(d_u1 + cf, (-dot(p1_t, dzd)).to(DT))

    # three products with a transposed sum: through memory, since registers of a sum cannot be transposed on every compiler
    scores1, pulled2 = dot(qq, tl.trans(kk)), dot(dd, tl.trans(u2d))
    scaled1, scaled2 = weight * s1[None, :], weight * s2[None, :]
    d_scores1 = (scaled1 * pulled1).to(DT)
    tl.store(scratch + local * 2 * C * C + cc, d_scores1)
    tl.store(scratch + (local * 2 + 1) * C * C + cc, (scaled2 * scores2).to(DT))
    tl.debug_barrier()
    dq -= dot(d_scores1, kk)
    tl.store(d_q + ci, dq)
    tl.store(d_k + ci, -dot(tl.load(scratch + local * 2 * C * C + cc_t), qq))
    du2 = -dot(tl.load(scratch + (local * 2 + 1) * C * C + cc_t), dd)
    tl.store(d_u2 + local * C * O + rc[:, None] * O + ro[None, :], du2)
    d_weight1, d_weight2 = scores1 * pulled1, scores2 * pulled2
    tl.store(d_pairs + chunk * C * C + cc, -(d_weight1 * s1[None, :] + d_weight2 * s2[None, :]))
    tl.store(d_rates + local * 2 * C + rc, -tl.sum(d_weight1 * weight, 0))
    tl.store(d_rates + local * 2 * C + C + rc, -tl.sum(d_weight2 * weight, 0))
    tl.store(d_carry + token, rows0)
    if SLOT:
        tl.store(d_slot + token, -rows1)

"""Backward through what queries read, all chunks at once.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import both, load_bias_rates, paired
from miras.kernels._mlp.blocks import anchor
from miras.kernels._mlp.links import shared
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import dot, layer_norm_vjp, load_rates


@triton.jit
def send(sent, rows, q, d, SENT: tl.constexpr, SLOT: tl.constexpr):
    """Leaves queries and d, the gradient of what they read, times their rows for the reverse scan. Returns the rows."""
    J: tl.constexpr = 2 if SLOT else 1
    C: tl.constexpr = q.shape[0]
    rc, ri, ro = tl.arange(0, C), tl.arange(0, q.shape[1]), tl.arange(0, d.shape[1])
    ri_at, ro_at = rc[:, None] * q.shape[1] + ri[None, :], rc[:, None] * d.shape[1] + ro[None, :]
    row0 = tl.load(rows + rc)[:, None]
    row1 = row0
    tl.store(sent + ri_at, (q.to(tl.float32) * row0).to(q.dtype))
    tl.store(sent + J * SENT + ro_at, (d * row0).to(q.dtype))
    if SLOT:
        row1 = tl.load(rows + C + rc)[:, None]
        tl.store(sent + SENT + ri_at, (q.to(tl.float32) * row1).to(q.dtype))
        tl.store(sent + 3 * SENT + ro_at, (d * row1).to(q.dtype))
    return row0, row1


@triton.jit(do_not_specialize=["first", "count", "total"])
def read_backward(
    q, k, lr, rows, pairs, out, d_answer,  # [b, total C, ...]
    seen1, seen2, kept_u2, squares,  # of the chunks at hand, [b, count, ...]
    seen_b, rates_b,  # fast biases before them, [b, count, J, F + O]; their rates, and gradients of these
    d_rows, d_pairs, d_out,  # results [b, total C, ...]; the first two in part
    h_, slope_, turn_, u1_, hr_, d_h, d_u1, d_zr, d_u2, d_rates,  # for the reverse scan, [b, count, ...]
    sent,  # queries and d_out times what they meet the weights with, [b, count, 2 J, C, max(I, O)]
    scratch,  # [b, count, 4, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, BIASES: tl.constexpr,
    ACT: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    LINK: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Gradients of ``out = rows (hr W2) - (pairs s2 hr h^T) u2`` with ``hr = act(zr)``.

    What every tile of the hidden width multiplies from the left goes through memory, because an operand that was loaded
    takes no registers; so does what has to be transposed, because not every compiler transposes registers of a sum.
    """
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    n, chunk, local = at_hand(first, count, total)
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    ro_at = rc[:, None] * O + ro[None, :]
    cc, cc_t = rc[:, None] * C + rc[None, :], rc[None, :] * C + rc[:, None]
    SENT: tl.constexpr = C * max(I, O)
    sent += local * 2 * J * SENT
    pairs += chunk * C * C
    scratch += local * 4 * C * C

    d = tl.load(d_answer + co).to(tl.float32)
    if NORM:
        d = layer_norm_vjp(d, tl.load(out + co), EPS, WIDTH)
    tl.store(d_out + co, d.to(DT))
    qq, kk = tl.load(q + ci), tl.load(k + ci)
    row0, row1 = send(sent, rows + chunk * J * C, qq, d, SENT, SLOT)
    u2 = tl.load(kept_u2 + local * C * O + ro_at)
    s1, s2 = load_rates(lr, squares, token, local, rc, C, BOUND)
    t1, t2 = s1, s2
    if BIASES:
        seen_b, last = seen_b + local * J * (F + O), (J - 1) * (F + O)
        t1, t2 = load_bias_rates(rates_b, local, rc, C)
    tl.store(scratch + cc, (-paired(qq, tl.trans(kk), pairs, cc, s1[None, :], t1[None, :], BIASES)).to(DT))
    tl.store(scratch + C * C + cc, (-paired(kk, tl.trans(qq), pairs, cc_t, s1[:, None], t1[:, None], BIASES)).to(DT))
    tl.debug_barrier()
    dd = tl.load(d_out + co)
    tl.store(scratch + 2 * C * C + cc, (-(dot(dd, tl.trans(u2)) * tl.load(pairs + cc) * s2[None, :])).to(DT))
    tl.store(scratch + 3 * C * C + cc, (-(dot(u2, tl.trans(dd)) * tl.load(pairs + cc_t) * s2[:, None])).to(DT))
    tl.debug_barrier()
    p1, p1_t = tl.load(scratch + cc), tl.load(scratch + C * C + cc)
    d_scores, d_scores_t = tl.load(scratch + 2 * C * C + cc), tl.load(scratch + 3 * C * C + cc)
    rows0, rows1 = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        a1, a2 = tl.load(seen1 + at1), tl.load(seen2 + at2)
        w1, w2 = a1, a2
        if BLOCKS > 1:
            a1, a2 = anchor(seen1 + at1, seen2 + at2, n, J, I, O, F, BLOCKS)
        z = shared(kk, dot(kk, a1), 0, LINK, L)
        if BIASES:
            z += tl.load(seen_b + f + rb)[None, :]
        h, slope, curve = ACT(z)
        hd = h.to(DT)
        pulled = shared(u2, dot(u2, a2), 1, LINK, L, NORM)
        u1 = (pulled * slope).to(DT)
        tl.store(h_ + cf, hd)
        tl.store(slope_ + cf, slope.to(DT))
        tl.store(turn_ + cf, (pulled * curve).to(DT))
        tl.store(u1_ + cf, u1)
        zr = row0 * shared(qq, dot(qq, w1), 0, LINK, L)
        if SLOT:
            zr += row1 * dot(qq, tl.load(seen1 + I * F + at1))
        if BIASES:
            zr += both(row0, row1, tl.load(seen_b + f + rb), tl.load(seen_b + last + f + rb), SLOT)
        hr, slope_r, _curve = ACT(dot(p1, u1, zr))
        hrd = hr.to(DT)
        tl.store(hr_ + cf, hrd)
        tl.store(d_h + cf, dot(d_scores_t, hrd).to(DT))
        scores = dot(hrd, tl.trans(hd), scores)
        seen = shared(dd, dot(dd, w2), 1, LINK, L, NORM)
        rows0 += tl.sum(hr * seen, 1)
        d_hr = row0 * seen
        if SLOT:
            seen = dot(dd, tl.load(seen2 + F * O + at2))
            rows1 += tl.sum(hr * seen, 1)
            d_hr += row1 * seen
        dz = (dot(d_scores, hd, d_hr) * slope_r).to(DT)
        tl.store(d_zr + cf, dz)
        tl.store(d_u1 + cf, dot(p1_t, dz).to(DT))

    if BIASES:
        df = dd.to(tl.float32)
        rows0 += tl.sum(df * tl.load(seen_b + F + ro)[None, :], 1)
        if SLOT:
            rows1 += tl.sum(df * tl.load(seen_b + F + O + F + ro)[None, :], 1)
    tl.store(d_rows + chunk * J * C + rc, rows0)
    if SLOT:
        tl.store(d_rows + chunk * J * C + C + rc, rows1)
    tl.debug_barrier()
    weight = tl.load(pairs + cc)
    if BIASES:
        taken = scores * s2[None, :] + t2[None, :]
        tl.store(scratch + C * C + cc, (-weight * taken).to(DT))
        pulled = dot(dd, tl.trans(u2))
        tl.store(d_rates + (local * 2 + 1) * C + rc, -tl.sum(pulled * scores * weight, 0))
        tl.store(rates_b + (local * 4 + 3) * C + rc, -tl.sum(pulled * weight, 0))
        tl.store(d_pairs + chunk * C * C + cc, -pulled * taken)
    else:
        tl.store(scratch + C * C + cc, (-(weight * s2[None, :]) * scores).to(DT))
        d_weight = dot(dd, tl.trans(u2)) * scores
        tl.store(d_rates + (local * 2 + 1) * C + rc, -tl.sum(d_weight * weight, 0))
        tl.store(d_pairs + chunk * C * C + cc, -d_weight * s2[None, :])
    tl.debug_barrier()
    tl.store(d_u2 + local * C * O + ro_at, dot(tl.load(scratch + C * C + cc_t), dd))


@triton.jit(do_not_specialize=["first", "count", "total"])
def query_backward(
    q, k, lr, rows, pairs, d_answer,  # [b, total C, ...]
    seen1, squares, u1_, d_zr,  # of the chunks at hand, [b, count, ...]
    seen_b, rates_b,  # as of `read_backward`
    d_q, near, d_rows, d_pairs, d_rates,  # results [b, total C, ...]; near is part of the gradient of k
    scratch,  # [b, count, 4, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, BIASES: tl.constexpr, RESIDUAL: tl.constexpr,
    LINK: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Gradients of ``zr = rows (q W1) - (pairs s1 q k^T) u1``."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    _n, chunk, local = at_hand(first, count, total)
    ri, rc, rb = tl.arange(0, I), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci = token[:, None] * I + ri[None, :]
    cc, cc_t = rc[:, None] * C + rc[None, :], rc[None, :] * C + rc[:, None]
    scratch += local * 4 * C * C

    pulled = tl.zeros([C, C], tl.float32)
    dq0, dq1 = tl.zeros([C, I], tl.float32), tl.zeros([C, I], tl.float32)
    if BIASES:
        seen_b += local * J * (F + O)
        rows0, rows1 = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        dz = tl.load(d_zr + cf)
        pulled = dot(dz, tl.trans(tl.load(u1_ + cf)), pulled)
        dq0 = shared(dz, dot(dz, tl.trans(tl.load(seen1 + at1)), dq0), 0, LINK, L)
        if SLOT:
            dq1 = dot(dz, tl.trans(tl.load(seen1 + I * F + at1)), dq1)
        if BIASES:
            df = dz.to(tl.float32)
            rows0 += tl.sum(df * tl.load(seen_b + f + rb)[None, :], 1)
            if SLOT:
                rows1 += tl.sum(df * tl.load(seen_b + F + O + f + rb)[None, :], 1)

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    qf = qq.to(tl.float32)
    at = chunk * J * C + rc
    known = tl.load(d_rows + at)
    if BIASES:
        known += rows0
    tl.store(d_rows + at, known + tl.sum(qf * dq0, 1))
    dq = tl.load(rows + at)[:, None] * dq0
    if SLOT:
        known = tl.load(d_rows + at + C)
        if BIASES:
            known += rows1
        tl.store(d_rows + at + C, known + tl.sum(qf * dq1, 1))
        dq += tl.load(rows + at + C)[:, None] * dq1
    s1, _s2 = load_rates(lr, squares, token, local, rc, C, BOUND)
    weight = tl.load(pairs + chunk * C * C + cc)
    d_scores = (-(weight * s1[None, :]) * pulled).to(DT)
    tl.store(scratch + cc, d_scores)
    d_weight = dot(qq, tl.trans(kk)) * pulled
    tl.store(d_rates + local * 2 * C + rc, -tl.sum(d_weight * weight, 0))
    known = tl.load(d_pairs + chunk * C * C + cc)
    if BIASES:
        t1, _t2 = load_bias_rates(rates_b, local, rc, C)
        tl.store(rates_b + (local * 4 + 2) * C + rc, -tl.sum(pulled * weight, 0))
        known -= pulled * t1[None, :]
    tl.store(d_pairs + chunk * C * C + cc, known - d_weight * s1[None, :])
    dq = dot(d_scores, kk, dq)
    if RESIDUAL:
        dq += tl.load(d_answer + ci).to(tl.float32)
    tl.store(d_q + ci, dq)
    tl.debug_barrier()
    tl.store(near + ci, dot(tl.load(scratch + cc_t), qq))

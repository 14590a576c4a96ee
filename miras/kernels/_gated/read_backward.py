"""Backward through what queries read, all chunks at once.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._gated.parts import hidden, load_rate
from miras.kernels._gated.read import met
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import dot, layer_norm_vjp
from miras.kernels._mlp.read_backward import send


@triton.jit(do_not_specialize=["first", "count", "total"])
def read_backward(
    q, k, lr, rows, pairs, out, d_answer,  # [b, total C, ...]
    seen1, seen2, kept_u2, rates,  # of the chunks at hand, [b, count, ...]
    d_rows, d_pairs, d_out,  # results [b, total C, ...]; the first two in part
    h_, hr_, d_h,  # for the reverse scan, [b, count, C, F]
    bend_, turn_, u1_, d_u1, d_zr,  # the same of gate and up, [b, count, 2, C, F]
    d_u2, d_rates,  # [b, count, ...]
    sent,  # queries and d_out times what they meet the weights with, [b, count, 2 J, C, max(I, O)]
    scratch,  # [b, count, 4, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``out = rows (hr Wd) - (pairs hr h^T) sd u``, and of the errors in ``zr`` and ``xr``.

    What every tile of the hidden width multiplies from the left goes through memory, because an operand that was loaded
    takes no registers; so does what has to be transposed, because not every compiler transposes registers of a sum.
    """
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    _n, chunk, local = at_hand(first, count, total)
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
        d = layer_norm_vjp(d, tl.load(out + co), EPS)
    tl.store(d_out + co, d.to(DT))
    qq, kk = tl.load(q + ci), tl.load(k + ci)
    row0, row1 = send(sent, rows + chunk * J * C, qq, d, SENT, SLOT)
    u = tl.load(kept_u2 + local * C * O + ro_at)
    sg = load_rate(lr, rates, token, local, rc, 0, C, BOUND)[:, None]
    su = load_rate(lr, rates, token, local, rc, 1, C, BOUND)[:, None]
    sd = load_rate(lr, rates, token, local, rc, 2, C, BOUND)
    tl.store(scratch + cc, (-(dot(qq, tl.trans(kk)) * tl.load(pairs + cc))).to(DT))
    tl.store(scratch + C * C + cc, (-(dot(kk, tl.trans(qq)) * tl.load(pairs + cc_t))).to(DT))
    tl.debug_barrier()
    dd = tl.load(d_out + co)
    tl.store(scratch + 2 * C * C + cc, (-(dot(dd, tl.trans(u)) * tl.load(pairs + cc) * sd[None, :])).to(DT))
    tl.store(scratch + 3 * C * C + cc, (-(dot(u, tl.trans(dd)) * tl.load(pairs + cc_t) * sd[:, None])).to(DT))
    tl.debug_barrier()
    p1, p1_t = tl.load(scratch + cc), tl.load(scratch + C * C + cc)
    d_scores, d_scores_t = tl.load(scratch + 2 * C * C + cc), tl.load(scratch + 3 * C * C + cc)
    rows0, rows1 = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        to_g = seen1 + local * J * 2 * I * F + ri[:, None] * F + (f + rb)[None, :]
        to_u = to_g + I * F
        to_d = seen2 + local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        cf_g = cf + local * C * F
        cf_u = cf_g + C * F
        ad = tl.load(to_d)
        h, bend_g, bend_u, turn_g, turn_u = hidden(dot(kk, tl.load(to_g)), dot(kk, tl.load(to_u)), ACT)
        hd = h.to(DT)
        pulled = dot(u, ad)
        tl.store(h_ + cf, hd)
        tl.store(bend_ + cf_g, bend_g.to(DT))
        tl.store(bend_ + cf_u, bend_u.to(DT))
        tl.store(turn_ + cf_g, (pulled * turn_g).to(DT))
        tl.store(turn_ + cf_u, (pulled * turn_u).to(DT))
        ug, uu = pulled * bend_g, pulled * bend_u
        tl.store(u1_ + cf_g, ug.to(DT))
        tl.store(u1_ + cf_u, uu.to(DT))
        zr = dot(p1, (ug * sg).to(DT), met(qq, to_g, row0, row1, SLOT, 2 * I * F))
        xr = dot(p1, (uu * su).to(DT), met(qq, to_u, row0, row1, SLOT, 2 * I * F))
        hr, bend_g, bend_u, _turn_g, _turn_u = hidden(zr, xr, ACT)
        hrd = hr.to(DT)
        tl.store(hr_ + cf, hrd)
        tl.store(d_h + cf, dot(d_scores_t, hrd).to(DT))
        scores = dot(hrd, tl.trans(hd), scores)
        seen = dot(dd, ad)
        rows0 += tl.sum(hr * seen, 1)
        d_hr = row0 * seen
        if SLOT:
            seen = dot(dd, tl.load(to_d + F * O))
            rows1 += tl.sum(hr * seen, 1)
            d_hr += row1 * seen
        d_hr = dot(d_scores, hd, d_hr)
        dz, dx = (d_hr * bend_g).to(DT), (d_hr * bend_u).to(DT)
        tl.store(d_zr + cf_g, dz)
        tl.store(d_zr + cf_u, dx)
        tl.store(d_u1 + cf_g, (sg * dot(p1_t, dz)).to(DT))
        tl.store(d_u1 + cf_u, (su * dot(p1_t, dx)).to(DT))

    tl.store(d_rows + chunk * J * C + rc, rows0)
    if SLOT:
        tl.store(d_rows + chunk * J * C + C + rc, rows1)
    tl.debug_barrier()
    weight = tl.load(pairs + cc)
    tl.store(scratch + C * C + cc, (-(weight * sd[None, :]) * scores).to(DT))
    d_weight = dot(dd, tl.trans(u)) * scores
    tl.store(d_rates + (local * 3 + 2) * C + rc, -tl.sum(d_weight * weight, 0))
    tl.store(d_pairs + chunk * C * C + cc, -d_weight * sd[None, :])
    tl.debug_barrier()
    tl.store(d_u2 + local * C * O + ro_at, dot(tl.load(scratch + C * C + cc_t), dd))


@triton.jit(do_not_specialize=["first", "count", "total"])
def query_backward(
    q, k, lr, rows, pairs, d_answer,  # [b, total C, ...]
    seen1, rates, u1_, d_zr,  # of the chunks at hand, [b, count, ...]
    d_q, near, d_rows, d_pairs, d_rates,  # results [b, total C, ...]; near is part of the gradient of k
    scratch,  # [b, count, 4, C, C]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Gradients of ``rows (q W) - (pairs q k^T) s u`` of gate and up, but for those of the errors."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    _n, chunk, local = at_hand(first, count, total)
    ri, rc, rb = tl.arange(0, I), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci = token[:, None] * I + ri[None, :]
    cc, cc_t = rc[:, None] * C + rc[None, :], rc[None, :] * C + rc[:, None]
    pairs += chunk * C * C
    d_pairs += chunk * C * C
    scratch += local * 4 * C * C

    taken = tl.zeros([C, C], tl.float32)
    dq0, dq1 = tl.zeros([C, I], tl.float32), tl.zeros([C, I], tl.float32)
    for m in tl.static_range(2):
        pulled = tl.zeros([C, C], tl.float32)
        for f in range(0, F, BF):
            to = seen1 + (local * J * 2 + m) * I * F + ri[:, None] * F + (f + rb)[None, :]
            cf = (local * 2 + m) * C * F + rc[:, None] * F + (f + rb)[None, :]
            dz = tl.load(d_zr + cf)
            pulled = dot(dz, tl.trans(tl.load(u1_ + cf)), pulled)
            dq0 = dot(dz, tl.trans(tl.load(to)), dq0)
            if SLOT:
                dq1 = dot(dz, tl.trans(tl.load(to + 2 * I * F)), dq1)
        scores = dot(tl.load(q + ci), tl.trans(tl.load(k + ci)))
        tl.store(d_rates + (local * 3 + m) * C + rc, -tl.sum(scores * pulled * tl.load(pairs + cc), 0))
        taken += pulled * load_rate(lr, rates, token, local, rc, m, C, BOUND)[None, :]

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    qf = qq.to(tl.float32)
    at = chunk * J * C + rc
    tl.store(d_rows + at, tl.load(d_rows + at) + tl.sum(qf * dq0, 1))
    dq = tl.load(rows + at)[:, None] * dq0
    if SLOT:
        tl.store(d_rows + at + C, tl.load(d_rows + at + C) + tl.sum(qf * dq1, 1))
        dq += tl.load(rows + at + C)[:, None] * dq1
    tl.store(d_pairs + cc, tl.load(d_pairs + cc) - dot(qq, tl.trans(kk)) * taken)
    d_scores = (-tl.load(pairs + cc) * taken).to(DT)
    tl.store(scratch + cc, d_scores)
    dq = dot(d_scores, kk, dq)
    if RESIDUAL:
        dq += tl.load(d_answer + ci).to(tl.float32)
    tl.store(d_q + ci, dq)
    tl.debug_barrier()
    tl.store(near + ci, dot(tl.load(scratch + cc_t), qq))

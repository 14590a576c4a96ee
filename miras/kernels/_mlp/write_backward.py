"""What backward has left to do for all chunks at once, after both scans.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import load_bias_rates
from miras.kernels._mlp.links import multiplier, shared, slope, unlinked
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import bounded_vjp, dot, inner, load_rates


@triton.jit(do_not_specialize=["first", "count", "total"])
def write_backward(
    k, lr, inverse, into,  # [b, total C, ...]
    seen1, seen2, kept_u2, squares, h_, u1_, d_rates, late1, late2, dz_,  # of the chunks at hand, [b, count, ...]
    d_k, near, d_lr, d_inverse, d_mix, d_into,  # results [b, total C, ...]; near is part of d_k
    sizes,  # under a link, of the chunks at hand: norms
    seen_b, late_b, rates_b,  # fast biases before the chunks at hand, gradients of those after; rates
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, BIASES: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """What the reverse scan leaves to be done for all chunks at once: keys, mixing and rates."""
    J: tl.constexpr = 2 if SLOT else 1
    n, chunk, local = at_hand(first, count, total)
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci = token[:, None] * I + ri[None, :]

    if LINK > 0:
        n1, n2 = tl.load(sizes + local * 2), tl.load(sizes + local * 2 + 1)
    x0, y0, dk = tl.zeros([C, I], tl.float32), tl.zeros([C, O], tl.float32), tl.zeros([C, I], tl.float32)
    i00, o00 = tl.zeros([I], tl.float32), tl.zeros([O], tl.float32)
    if SLOT:
        x1, y1 = tl.zeros([C, I], tl.float32), tl.zeros([C, O], tl.float32)
        i01, i11, o01, o11 = i00, i00, o00, o00
    if BIASES:
        r0, r1 = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
        seen_b += local * J * (F + O)
        late_b += local * J * (F + O)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        u1, a1, e1 = tl.load(u1_ + cf), tl.load(seen1 + at1), tl.load(late1 + at1)
        if BLOCKS > 1:
            dk = dot_t(tl.load(dz_ + cf), tl.load(seen1 - n % BLOCKS * (J * I * F) + at1), dk)
        else:
            dz = tl.load(dz_ + cf)
            dk = shared(dz, dot_t(dz, a1, dk), 0, LINK, L)
        x0 = dot_t(u1, e1, x0)
        if LINK > 0:
            i00 += inner(e1, unlinked(a1, n1, 0, LINK, L))
        else:
            i00 += inner(e1, a1)
        if SLOT:
            m1, f1 = tl.load(seen1 + I * F + at1), tl.load(late1 + I * F + at1)
            x1 = dot_t(u1, f1, x1)
            i01, i11 = i01 + inner(e1, m1), i11 + inner(f1, m1)
        if BIASES:
            uf, late0 = u1.to(tl.float32), tl.load(late_b + f + rb)
            r0 += tl.sum(uf * late0[None, :], 1)
            i00 += tl.where(ri == 0, tl.sum(late0 * tl.load(seen_b + f + rb)), 0.0)
            if SLOT:
                b1, late1b = tl.load(seen_b + F + O + f + rb), tl.load(late_b + F + O + f + rb)
                r1 += tl.sum(uf * late1b[None, :], 1)
                i01 += tl.where(ri == 0, tl.sum(late0 * b1), 0.0)
                i11 += tl.where(ri == 0, tl.sum(late1b * b1), 0.0)
        h, a2, e2 = tl.load(h_ + cf), tl.load(seen2 + at2), tl.load(late2 + at2)
        y0 = dot_t(h, e2, y0)
        if LINK > 0:
            o00 += inner(e2, unlinked(a2, n2, 1, LINK, L))
        else:
            o00 += inner(e2, a2)
        if SLOT:
            m2, f2 = tl.load(seen2 + F * O + at2), tl.load(late2 + F * O + at2)
            y1 = dot_t(h, f2, y1)
            o01, o11 = o01 + inner(e2, m2), o11 + inner(f2, m2)
    if BIASES:
        late0 = tl.load(late_b + F + ro)
        o00 += late0 * tl.load(seen_b + F + ro)
        if SLOT:
            b1, late1b = tl.load(seen_b + F + O + F + ro), tl.load(late_b + F + O + F + ro)
            o01, o11 = o01 + late0 * b1, o11 + late1b * b1
    tl.store(d_mix + chunk * J * J, tl.sum(i00) + tl.sum(o00))
    if SLOT:
        tl.store(d_mix + chunk * 4 + 1, tl.sum(i01) + tl.sum(o01))
        tl.store(d_mix + chunk * 4 + 2, 0.0)
        tl.store(d_mix + chunk * 4 + 3, tl.sum(i11) + tl.sum(o11))

    kf = tl.load(k + ci).to(tl.float32)
    u2 = tl.load(kept_u2 + local * C * O + rc[:, None] * O + ro[None, :]).to(tl.float32)
    s1, s2 = load_rates(lr, squares, token, local, rc, C, BOUND)
    d_s1, d_s2 = tl.load(d_rates + local * 2 * C + rc), tl.load(d_rates + local * 2 * C + C + rc)
    if LINK > 0:  # those of what is read, until here
        d_s1, d_s2 = d_s1 * multiplier(n1, LINK, L), d_s2 * multiplier(n2, LINK, L)
    row = tl.load(into + chunk * J * C + rc)
    d_row1, d_row2 = tl.sum(x0 * kf, 1), tl.sum(y0 * u2, 1)
    if BIASES:
        t1, t2 = load_bias_rates(rates_b, local, rc, C)
        d_t1, d_t2 = load_bias_rates(rates_b + 2 * C, local, rc, C)
        q0 = tl.sum(u2 * late0[None, :], 1)
        d_t1, d_t2 = d_t1 + row * r0, d_t2 + row * q0
        tl.store(d_into + chunk * J * C + rc, d_row1 * s1 + d_row2 * s2 + r0 * t1 + q0 * t2)
    else:
        tl.store(d_into + chunk * J * C + rc, d_row1 * s1 + d_row2 * s2)
    d_s1, d_s2 = d_s1 + row * d_row1, d_s2 + row * d_row2
    dk += (row * s1)[:, None] * x0
    if SLOT:
        row = tl.load(into + chunk * J * C + C + rc)
        d_row1, d_row2 = tl.sum(x1 * kf, 1), tl.sum(y1 * u2, 1)
        if BIASES:
            q1 = tl.sum(u2 * late1b[None, :], 1)
            d_t1, d_t2 = d_t1 + row * r1, d_t2 + row * q1
            tl.store(d_into + chunk * J * C + C + rc, d_row1 * s1 + d_row2 * s2 + r1 * t1 + q1 * t2)
        else:
            tl.store(d_into + chunk * J * C + C + rc, d_row1 * s1 + d_row2 * s2)
        d_s1, d_s2 = d_s1 + row * d_row1, d_s2 + row * d_row2
        dk += (row * s1)[:, None] * x1
    if BOUND:
        rate, bound = tl.load(lr + token), tl.load(inverse + token)
        h_square, u1_square = tl.load(squares + local * 5 * C + rc), tl.load(squares + (local * 5 + 1) * C + rc)
        square2 = h_square * tl.load(squares + (local * 5 + 2) * C + rc)
        bound1, bound2 = bound, bound
        if LINK > 0:
            bound1, bound2 = bound * slope(n1, LINK, L), bound * slope(n2, LINK, L)
        d_lr2, d_bound2, d_square = bounded_vjp(d_s2, rate, bound2, square2)
        d_lr1, d_bound1, d_square = bounded_vjp(d_s1, rate, bound1, tl.sum(kf * kf, 1) * u1_square)
        if LINK > 0:
            d_bound1, d_bound2 = d_bound1 * slope(n1, LINK, L), d_bound2 * slope(n2, LINK, L)
        if BIASES:
            b_lr1, b_bound1, _square = bounded_vjp(d_t1, rate, bound, u1_square)
            b_lr2, b_bound2, _square = bounded_vjp(d_t2, rate, bound, tl.load(squares + (local * 5 + 2) * C + rc))
            d_lr1, d_bound1 = d_lr1 + b_lr1 + b_lr2, d_bound1 + b_bound1 + b_bound2
        tl.store(d_lr + token, d_lr1 + d_lr2)
        tl.store(d_inverse + token, d_bound1 + d_bound2)
        dk += (d_square * u1_square)[:, None] * kf
    else:
        if BIASES:
            d_s1 += d_t1 + d_t2
        tl.store(d_lr + token, d_s1 + d_s2)
    tl.store(d_k + ci, tl.load(near + ci) + dk)


@triton.jit
def dot_t(a, b, total):
    """``total + a b^T``."""
    return dot(a, tl.trans(b), total)

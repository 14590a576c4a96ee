"""Backward through the writes: gradients of the weights travel from the last chunk to the first, in registers.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import add_up, arrive, bounded_rate, dot, error, error_vjp, load_gate, wait


@triton.jit
def clipped(x, LIMIT: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit(do_not_specialize=["first", "count", "total"])
def reverse(
    q, k, v, gate, lr, inverse, carry, slot, mix, into, d_out,  # [b, total C, ...]
    seen2, kept_o, squares,  # of the chunks at hand, [b, count, ...]
    h_, slope_, turn_, u1_, hr_, d_h, d_u1, d_zr, d_u2, d_rates,
    d_w1, d_w2,  # of the stacks after the last chunk; then of those before the first
    late1, late2, dz_, du2_,  # of every chunk: gradients of the stacks after it, of z and of u2
    parts, norms, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, LIMIT: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` and of the errors at the anchor."""
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    ticket = tl.atomic_add(tickets, 1)
    b = (ticket // TILES).to(tl.int64)
    tile = ticket % TILES
    arrivals = tickets + 1 + b
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], rf[None, :] * O + ro[:, None]
    at2_t = ro[:, None] * F + rf[None, :]
    ci, co, cf = rc[:, None] * I + ri[None, :], rc[:, None] * O + ro[None, :], rc[:, None] * F + rf[None, :]
    met = 0

    e1, e2 = tl.load(d_w1 + b * J * I * F + at1), tl.load(d_w2 + b * J * F * O + at2)
    if SLOT:
        f1, f2 = tl.load(d_w1 + (b * J + 1) * I * F + at1), tl.load(d_w2 + (b * J + 1) * F * O + at2)

    for back in range(count):
        n = count - 1 - back
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        wide = local * C * F + cf
        kk = tl.load(k + chunk * C * I + ci)
        kf = kk.to(tl.float32)
        vv = tl.load(v + chunk * C * O + co).to(tl.float32)
        g = load_gate(gate, token, chunk * C * O + co, GATE)
        u2, y, scale, e = error(tl.load(kept_o + local * C * O + co), kf, vv, g, BIAS, P, NORM, RESIDUAL, EPS)
        rate = tl.load(lr + token)
        s1, s2 = rate, rate
        if BOUND:
            bound = tl.load(inverse + token)
            h_square, u1_square = tl.load(squares + local * 2 * C + rc), tl.load(squares + local * 2 * C + C + rc)
            k_square, u2_square = tl.sum(kf * kf, 1), tl.sum(u2 * u2, 1)
            s1, norm1 = bounded_rate(rate, bound, k_square, u1_square, BOUND)
            s2, norm2 = bounded_rate(rate, bound, h_square, u2_square, BOUND)

        # the writes, before what the other tiles add
        row0 = tl.load(into + chunk * J * C + rc)[:, None]
        e1d, e2d = e1.to(DT), e2.to(DT)
        tl.store(late1 + local * J * I * F + at1, e1d)
        tl.store(late2 + local * J * F * O + at2_t, e2d)
        du1 = dot((kf * row0).to(DT), e1d)
        dh = dot((u2 * row0).to(DT), e2d)
        hh = tl.load(h_ + wide)
        hf = hh.to(tl.float32) * s2[:, None]
        part = dot((hf * row0).to(DT), tl.trans(e2d))
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)[:, None]
            f1d, f2d = f1.to(DT), f2.to(DT)
            tl.store(late1 + (local * J + 1) * I * F + at1, f1d)
            tl.store(late2 + (local * J + 1) * F * O + at2_t, f2d)
            du1 = dot((kf * row1).to(DT), f1d, du1)
            dh = dot((u2 * row1).to(DT), f2d, dh)
            part = dot((hf * row1).to(DT), tl.trans(f2d), part)
        shared = (b * 2 + back % 2) * TILES
        du2 = tl.load(d_u2 + local * C * O + co)
        if BOUND:
            u1 = tl.load(u1_ + wide).to(tl.float32)
            mine = norms + (shared + tile) * 2 * C + rc
            tl.store(mine, tl.sum(u1 * du1, 1))
            tl.store(mine + C, tl.sum(hh.to(tl.float32) * dh, 1))
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
            d_s1 = tl.load(d_rates + local * 2 * C + rc) + add_up(norms + shared * 2 * C, rc, 2 * C, TILES)
            d_s2 = tl.load(d_rates + local * 2 * C + C + rc) + add_up(norms + shared * 2 * C + C, rc, 2 * C, TILES)
            d_norm1, d_norm2 = bound_slope(d_s1, rate, bound, norm1), bound_slope(d_s2, rate, bound, norm2)
            du1 = du1 * s1[:, None] + (d_norm1 * k_square)[:, None] * u1
            dh = dh * s2[:, None] + (d_norm2 * u2_square)[:, None] * hh.to(tl.float32)
            du2 += (d_norm2 * h_square)[:, None] * u2
        else:
            du1 *= s1[:, None]
            dh *= s2[:, None]
        du1 += tl.load(d_u1 + wide).to(tl.float32)
        slope = tl.load(slope_ + wide).to(tl.float32)
        d_pulled = (du1 * slope).to(DT)
        a2 = tl.load(seen2 + local * J * F * O + at2_t)
        tl.store(parts + (shared + tile) * C * O + co, dot(d_pulled, tl.trans(a2), part))
        arrive(arrivals)
        met += TILES

        # what does not wait for the others: mixing, and what the queries sent
        dz = du1 * tl.load(turn_ + wide).to(tl.float32)
        dh = (dh + tl.load(d_h + wide).to(tl.float32)) * slope
        qf = tl.load(q + chunk * C * I + ci).to(tl.float32)
        df = tl.load(d_out + chunk * C * O + co).to(tl.float32)
        dzr, hr = tl.load(d_zr + wide), tl.load(hr_ + wide)
        carried = tl.load(carry + token)[:, None]
        m00 = tl.load(mix + chunk * J * J)
        if SLOT:
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            slotted = -tl.load(slot + token)[:, None]
            x1, x2 = m01 * e1 + m11 * f1, m01 * e2 + m11 * f2
            e1, e2 = m00 * e1 + m10 * f1, m00 * e2 + m10 * f2
            f1 = dot(tl.trans((qf * slotted).to(DT)), dzr, x1)
            f2 = dot(tl.trans((df * slotted).to(DT)), hr, x2)
        else:
            e1, e2 = m00 * e1, m00 * e2
        e1 = dot(tl.trans((qf * carried).to(DT)), dzr, e1)
        e2 = dot(tl.trans((df * carried).to(DT)), hr, e2)
        e2 = dot(tl.trans(u2.to(DT)), d_pulled, e2)

        # the tap: u1 = (u2 W2^T) act'(z), u2 = error(o), o = h W2, h = act(z), z = k W1
        wait(arrivals, met)
        du2 += add_up(parts + shared * C * O, co, C * O, TILES)
        if tile == 0:
            tl.store(du2_ + local * C * O + co, du2)
        d_o, d_answer, d_v, d_g = error_vjp(du2, u2, y, scale, e, kf, vv, g, VJP, P, NORM, RESIDUAL)
        d_od = d_o.to(DT)
        dzd = (dz + dh + dot(d_od, a2) * slope).to(DT)
        tl.store(dz_ + wide, dzd)
        e1 = dot(tl.trans(kk), dzd, e1)
        e2 = dot(tl.trans(d_od), hh, e2)
        if BOUND:
            e1, e2 = clipped(e1, LIMIT), clipped(e2, LIMIT)
            if SLOT:
                f1, f2 = clipped(f1, LIMIT), clipped(f2, LIMIT)

    tl.store(d_w1 + b * J * I * F + at1, e1)
    tl.store(d_w2 + b * J * F * O + at2, e2)
    if SLOT:
        tl.store(d_w1 + (b * J + 1) * I * F + at1, f1)
        tl.store(d_w2 + (b * J + 1) * F * O + at2, f2)


@triton.jit
def bound_slope(d_rate, lr, inverse, norm):
    """The gradient at ``a b``, where the bounded rate is ``lr / (1 + sqrt(a b) lr inverse)``; twice the root's."""
    damp = 1 + norm * lr * inverse
    return -d_rate / (damp * damp) * lr * lr * inverse / norm


@triton.jit(do_not_specialize=["first", "count", "total"])
def write_backward(
    k, v, gate, lr, inverse, into,  # [b, total C, ...]
    seen1, seen2, kept_o, squares, h_, u1_, d_rates, late1, late2, dz_, du2_,  # of the chunks at hand, [b, count, ...]
    d_k, d_v, d_gate, d_lr, d_inverse, d_mix, d_into,  # results [b, total C, ...]; d_k is added to
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """What the reverse scan leaves to be done for all chunks at once: keys, values, gates and rates."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b = (tl.program_id(0) // count).to(tl.int64)
    n = tl.program_id(0) % count
    chunk, local = b * total + first + n, b * count + n
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]

    x0, y0, dk = tl.zeros([C, I], tl.float32), tl.zeros([C, O], tl.float32), tl.zeros([C, I], tl.float32)
    s00 = tl.zeros([I], tl.float32)
    t00 = tl.zeros([O], tl.float32)
    if SLOT:
        x1, y1 = tl.zeros([C, I], tl.float32), tl.zeros([C, O], tl.float32)
        s01, s10, s11 = s00, s00, s00
        t01, t10, t11 = t00, t00, t00
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        cf = local * C * F + rc[:, None] * F + (f + rb)[None, :]
        h, u1, dz = tl.load(h_ + cf), tl.load(u1_ + cf), tl.load(dz_ + cf)
        a1, e1 = tl.load(seen1 + at1), tl.load(late1 + at1)
        dk = dot(dz, tl.trans(a1), dk)
        x0 = dot(u1, tl.trans(e1), x0)
        s00 += inner(e1, a1)
        if SLOT:
            m1, f1 = tl.load(seen1 + I * F + at1), tl.load(late1 + I * F + at1)
            x1 = dot(u1, tl.trans(f1), x1)
            s01, s10, s11 = s01 + inner(e1, m1), s10 + inner(f1, a1), s11 + inner(f1, m1)
        a2, e2 = tl.load(seen2 + at2), tl.load(late2 + at2)
        y0 = dot(h, tl.trans(e2), y0)
        t00 += inner(e2, a2)
        if SLOT:
            m2, f2 = tl.load(seen2 + F * O + at2), tl.load(late2 + F * O + at2)
            y1 = dot(h, tl.trans(f2), y1)
            t01, t10, t11 = t01 + inner(e2, m2), t10 + inner(f2, a2), t11 + inner(f2, m2)
    tl.store(d_mix + chunk * J * J, tl.sum(s00) + tl.sum(t00))
    if SLOT:
        tl.store(d_mix + chunk * 4 + 1, tl.sum(s01) + tl.sum(t01))
        tl.store(d_mix + chunk * 4 + 2, tl.sum(s10) + tl.sum(t10))
        tl.store(d_mix + chunk * 4 + 3, tl.sum(s11) + tl.sum(t11))

    kf, vv = tl.load(k + ci).to(tl.float32), tl.load(v + co).to(tl.float32)
    g = load_gate(gate, token, co, GATE)
    o = tl.load(kept_o + local * C * O + rc[:, None] * O + ro[None, :])
    u2, y, scale, e = error(o, kf, vv, g, BIAS, P, NORM, RESIDUAL, EPS)
    du2 = tl.load(du2_ + local * C * O + rc[:, None] * O + ro[None, :])
    d_o, d_answer, dv, dg = error_vjp(du2, u2, y, scale, e, kf, vv, g, VJP, P, NORM, RESIDUAL)
    tl.store(d_v + co, dv)
    if GATE == 1:
        tl.store(d_gate + token, tl.sum(dg, 1))
    if GATE == 2:
        tl.store(d_gate + co, dg)

    rate = tl.load(lr + token)
    s1, s2 = rate, rate
    if BOUND:
        bound = tl.load(inverse + token)
        h_square, u1_square = tl.load(squares + local * 2 * C + rc), tl.load(squares + local * 2 * C + C + rc)
        s1, norm1 = bounded_rate(rate, bound, tl.sum(kf * kf, 1), u1_square, BOUND)
        s2, norm2 = bounded_rate(rate, bound, h_square, tl.sum(u2 * u2, 1), BOUND)
    d_s1, d_s2 = tl.load(d_rates + local * 2 * C + rc), tl.load(d_rates + local * 2 * C + C + rc)
    row = tl.load(into + chunk * J * C + rc)
    d_row1, d_row2 = tl.sum(x0 * kf, 1), tl.sum(y0 * u2, 1)
    tl.store(d_into + chunk * J * C + rc, d_row1 * s1 + d_row2 * s2)
    d_s1, d_s2 = d_s1 + row * d_row1, d_s2 + row * d_row2
    dk += (row * s1)[:, None] * x0
    if SLOT:
        row = tl.load(into + chunk * J * C + C + rc)
        d_row1, d_row2 = tl.sum(x1 * kf, 1), tl.sum(y1 * u2, 1)
        tl.store(d_into + chunk * J * C + C + rc, d_row1 * s1 + d_row2 * s2)
        d_s1, d_s2 = d_s1 + row * d_row1, d_s2 + row * d_row2
        dk += (row * s1)[:, None] * x1
    if BOUND:
        damp1, damp2 = 1 + norm1 * rate * bound, 1 + norm2 * rate * bound
        shrink1, shrink2 = d_s1 / (damp1 * damp1), d_s2 / (damp2 * damp2)
        tl.store(d_lr + token, shrink1 + shrink2)
        tl.store(d_inverse + token, -rate * rate * (shrink1 * norm1 + shrink2 * norm2))
        dk += (bound_slope(d_s1, rate, bound, norm1) * u1_square)[:, None] * kf
    else:
        tl.store(d_lr + token, d_s1 + d_s2)
    if RESIDUAL:
        dk += d_answer
    tl.store(d_k + ci, tl.load(d_k + ci) + dk)


@triton.jit
def inner(a, b):
    """The inner products of the rows of two matrices."""
    return tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)

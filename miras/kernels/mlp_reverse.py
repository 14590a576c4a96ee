"""Backward through the writes: gradients of the weights travel from the last chunk to the first, in registers.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels.mlp_parts import add_up, arrive, bounded_rate, error, error_vjp, wait
from miras.kernels.mlp_scan import dot


@triton.jit
def clipped(x, LIMIT: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit(do_not_specialize=["first", "count", "total"])
def reverse(
    q, k, v, gate, lr, inverse, carry, slot, mix, into, d_out,  # [b, total C, ...]
    seen1, seen2, kept_o, squares, d_h, d_u1, d_zr, hr_, d_u2, d_rates,  # of the chunks at hand, [b, count, ...]
    d_w1, d_w2,  # of the stacks after the last chunk; then of those before the first
    d_k, d_v, d_gate, d_lr, d_inverse, d_into,  # results [b, total C, ...]; d_k is added to
    d_mix, d_k_parts,  # results in parts, [b, tile, count, ...]
    parts, norms, tickets,  # what tiles tell each other
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, LIMIT: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, VJP: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of ``W_i' = sum_j mix_ij W_j + (into_i s keys)^T errors`` and of keys and errors at the anchor."""
    TILES: tl.constexpr = F // BF
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    ticket = tl.atomic_add(tickets, 1)
    b = (ticket // TILES).to(tl.int64)
    tile = ticket % TILES
    arrivals = tickets + 1 + b
    ri, ro, rc, rf = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tile * BF + tl.arange(0, BF)
    at1, at2 = ri[:, None] * F + rf[None, :], rf[None, :] * O + ro[:, None]
    seen_at2 = ro[:, None] * F + rf[None, :]
    co, cf = rc[:, None] * O + ro[None, :], rc[:, None] * F + rf[None, :]
    ci = rc[:, None] * I + ri[None, :]
    met = 0

    e1, e2 = tl.load(d_w1 + b * J * I * F + at1), tl.load(d_w2 + b * J * F * O + at2)
    if SLOT:
        f1, f2 = tl.load(d_w1 + (b * J + 1) * I * F + at1), tl.load(d_w2 + (b * J + 1) * F * O + at2)

    for back in range(count):
        n = count - 1 - back
        chunk, local = b * total + first + n, b * count + n
        token = chunk * C + rc
        e1d, e2d = e1.to(DT), e2.to(DT)
        a1, a2 = tl.load(seen1 + local * J * I * F + at1), tl.load(seen2 + local * J * F * O + seen_at2)
        kk = tl.load(k + chunk * C * I + ci)
        kf = kk.to(tl.float32)
        vv = tl.load(v + chunk * C * O + co).to(tl.float32)
        g = 0.0
        if GATE == 1:
            g = tl.load(gate + token)[:, None]
        if GATE == 2:
            g = tl.load(gate + chunk * C * O + co)
        o = tl.load(kept_o + local * C * O + co)
        u2, y, scale, e = error(o, kf, vv, g, BIAS, P, NORM, RESIDUAL, EPS)
        u2d = u2.to(DT)
        h, slope, curve = ACT(dot(kk, a1))
        pulled = dot(u2d, a2)
        u1 = pulled * slope
        rate = tl.load(lr + token)
        s1, s2 = rate, rate
        if BOUND:
            bound = tl.load(inverse + token)
            h_square, u1_square = tl.load(squares + local * 2 * C + rc), tl.load(squares + local * 2 * C + C + rc)
            k_square, u2_square = tl.sum(kf * kf, 1), tl.sum(u2 * u2, 1)
            s1, norm1 = bounded_rate(rate, bound, k_square, u1_square, BOUND)
            s2, norm2 = bounded_rate(rate, bound, h_square, u2_square, BOUND)

        # the writes
        row0 = tl.load(into + chunk * J * C + rc)
        k_e, u_e = dot(kk, e1d), dot(u2d, e2d)
        shared = (b * 2 + back % 2) * TILES
        mine = norms + (shared + tile) * 2 * J * C + rc
        tl.store(mine, tl.sum(u1 * k_e, 1))
        tl.store(mine + C, tl.sum(h * u_e, 1))
        du1 = (row0 * s1)[:, None] * k_e + tl.load(d_u1 + local * C * F + cf).to(tl.float32)
        dh = (row0 * s2)[:, None] * u_e + tl.load(d_h + local * C * F + cf).to(tl.float32)
        part = dot((h * (row0 * s2)[:, None]).to(DT), tl.trans(e2d))
        dk = dot((u1 * (row0 * s1)[:, None]).to(DT), tl.trans(e1d))
        if SLOT:
            row1 = tl.load(into + chunk * J * C + C + rc)
            f1d, f2d = f1.to(DT), f2.to(DT)
            k_f, u_f = dot(kk, f1d), dot(u2d, f2d)
            tl.store(mine + 2 * C, tl.sum(u1 * k_f, 1))
            tl.store(mine + 3 * C, tl.sum(h * u_f, 1))
            du1 += (row1 * s1)[:, None] * k_f
            dh += (row1 * s2)[:, None] * u_f
            part += dot((h * (row1 * s2)[:, None]).to(DT), tl.trans(f2d))
            dk += dot((u1 * (row1 * s1)[:, None]).to(DT), tl.trans(f1d))

        # the bounded learning rates
        if BOUND:
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
        else:
            d_pulled = (du1 * slope).to(DT)
            part += dot(d_pulled, tl.trans(a2))
            tl.store(parts + (shared + tile) * C * O + co, part)
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
        theirs = norms + shared * 2 * J * C
        d_row1, d_row2 = add_up(theirs, rc, 2 * J * C, TILES), add_up(theirs + C, rc, 2 * J * C, TILES)
        d_s1 = tl.load(d_rates + local * 2 * C + rc) + row0 * d_row1
        d_s2 = tl.load(d_rates + local * 2 * C + C + rc) + row0 * d_row2
        if tile == 0:
            tl.store(d_into + chunk * J * C + rc, d_row1 * s1 + d_row2 * s2)
        if SLOT:
            d_row1 = add_up(theirs + 2 * C, rc, 2 * J * C, TILES)
            d_row2 = add_up(theirs + 3 * C, rc, 2 * J * C, TILES)
            d_s1 += row1 * d_row1
            d_s2 += row1 * d_row2
            if tile == 0:
                tl.store(d_into + chunk * J * C + C + rc, d_row1 * s1 + d_row2 * s2)
        du2 = tl.load(d_u2 + local * C * O + co)
        if BOUND:
            damp1, damp2 = 1 + norm1 * rate * bound, 1 + norm2 * rate * bound
            shrink1, shrink2 = d_s1 / (damp1 * damp1), d_s2 / (damp2 * damp2)
            if tile == 0:
                tl.store(d_lr + token, shrink1 + shrink2)
                tl.store(d_inverse + token, -rate * rate * (shrink1 * norm1 + shrink2 * norm2))
            d_norm1 = -shrink1 * rate * rate * bound / norm1
            d_norm2 = -shrink2 * rate * rate * bound / norm2
            du1 += (d_norm1 * k_square)[:, None] * u1
            dh += (d_norm2 * u2_square)[:, None] * h
            du2 += (d_norm2 * h_square)[:, None] * u2
            d_pulled = (du1 * slope).to(DT)
            part += dot(d_pulled, tl.trans(a2))
            tl.store(parts + (shared + tile) * C * O + co, part)
            arrive(arrivals)
            met += TILES
            wait(arrivals, met)
        else:
            if tile == 0:
                tl.store(d_lr + token, d_s1 + d_s2)
        du2 += add_up(parts + shared * C * O, co, C * O, TILES)

        # the tap: u1 = (u2 W2^T) act'(z), u2 = error(o), o = h W2, h = act(z), z = k W1
        d_o, d_answer, dv, dg = error_vjp(du2, u2, y, scale, e, kf, vv, g, VJP, P, NORM, RESIDUAL)
        if tile == 0:
            tl.store(d_v + chunk * C * O + co, dv)
            if GATE == 1:
                tl.store(d_gate + token, tl.sum(dg, 1))
            if GATE == 2:
                tl.store(d_gate + chunk * C * O + co, dg)
            near = tl.load(d_k + chunk * C * I + ci)
            if RESIDUAL:
                near += d_answer
            if BOUND:
                near += (d_norm1 * u1_square)[:, None] * kf
            tl.store(d_k + chunk * C * I + ci, near)
        d_od = d_o.to(DT)
        dh += dot(d_od, a2)
        dz = (du1 * pulled * curve + dh * slope).to(DT)
        dk += dot(dz, tl.trans(a1))
        tl.store(d_k_parts + ((b * TILES + tile) * count + n) * C * I + ci, dk)

        # the weights before the chunk
        qt, kt = tl.trans(tl.load(q + chunk * C * I + ci)), tl.trans(kk)
        dd = tl.load(d_out + chunk * C * O + co)
        dzr, hr = tl.load(d_zr + local * C * F + cf), tl.load(hr_ + local * C * F + cf)
        carried = tl.load(carry + token)[:, None]
        n1 = dot(kt, dz) + dot(qt, (dzr.to(tl.float32) * carried).to(DT))
        n2 = dot(tl.trans(u2d), d_pulled) + dot(tl.trans(d_od), h.to(DT))
        n2 += dot(tl.trans((dd.to(tl.float32) * carried).to(DT)), hr)
        m00 = tl.load(mix + chunk * J * J)
        x00 = d_mix + ((b * TILES + tile) * count + n) * J * J
        tl.store(x00, tl.sum(e1 * a1.to(tl.float32)) + tl.sum(e2 * a2.to(tl.float32)))
        if SLOT:
            m01, m10 = tl.load(mix + chunk * 4 + 1), tl.load(mix + chunk * 4 + 2)
            m11 = tl.load(mix + chunk * 4 + 3)
            b1 = tl.load(seen1 + (local * J + 1) * I * F + at1).to(tl.float32)
            b2 = tl.load(seen2 + (local * J + 1) * F * O + seen_at2).to(tl.float32)
            tl.store(x00 + 1, tl.sum(e1 * b1) + tl.sum(e2 * b2))
            tl.store(x00 + 2, tl.sum(f1 * a1.to(tl.float32)) + tl.sum(f2 * a2.to(tl.float32)))
            tl.store(x00 + 3, tl.sum(f1 * b1) + tl.sum(f2 * b2))
            slotted = -tl.load(slot + token)[:, None]
            x1 = m01 * e1 + m11 * f1 + dot(qt, (dzr.to(tl.float32) * slotted).to(DT))
            x2 = m01 * e2 + m11 * f2 + dot(tl.trans((dd.to(tl.float32) * slotted).to(DT)), hr)
            e1 = m00 * e1 + m10 * f1 + n1
            e2 = m00 * e2 + m10 * f2 + n2
            f1, f2 = x1, x2
            if BOUND:
                f1, f2 = clipped(f1, LIMIT), clipped(f2, LIMIT)
        else:
            e1 = m00 * e1 + n1
            e2 = m00 * e2 + n2
        if BOUND:
            e1, e2 = clipped(e1, LIMIT), clipped(e2, LIMIT)

    tl.store(d_w1 + b * J * I * F + at1, e1)
    tl.store(d_w2 + b * J * F * O + at2, e2)
    if SLOT:
        tl.store(d_w1 + (b * J + 1) * I * F + at1, f1)
        tl.store(d_w2 + (b * J + 1) * F * O + at2, f2)

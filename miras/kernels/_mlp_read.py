"""What queries read, all chunks at once, from the weights and errors that the scan left.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import bounded_rate, dot, error, load_gate, mean


@triton.jit(do_not_specialize=["first", "count", "total"])
def read(
    q, k, v, gate, lr, inverse, carry, pairs, slot,  # [b, total C, ...]
    seen1, seen2, kept_o, squares,  # of the chunks at hand, [b, count, ...]
    out, answer,  # before norm and residual, and after, [b, total C, O]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, GATE: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """``zr = rows (q W1) - (pairs s1 q k^T) u1`` and ``out = rows (hr W2) - (pairs s2 hr h^T) u2`` with ``hr = act(zr)``."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    b = (tl.program_id(0) // count).to(tl.int64)
    n = tl.program_id(0) % count
    chunk, local = b * total + first + n, b * count + n
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    cc = rc[:, None] * C + rc[None, :]

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    kf, qf = kk.to(tl.float32), qq.to(tl.float32)
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

    weight = tl.load(pairs + chunk * C * C + cc)
    p1 = (-(dot(qq, tl.trans(kk)) * weight * s1[None, :])).to(DT)
    row0 = tl.load(carry + token)[:, None]
    q0 = (qf * row0).to(DT)
    if SLOT:
        row1 = -tl.load(slot + token)[:, None]
        q1 = (qf * row1).to(DT)
        y1 = tl.zeros([C, O], tl.float32)
    y0 = tl.zeros([C, O], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        a1, a2 = tl.load(seen1 + at1), tl.load(seen2 + at2)
        h, slope, curve = ACT(dot(kk, a1))
        zr = dot(p1, (dot(u2d, a2) * slope).to(DT), dot(q0, a1))
        if SLOT:
            zr = dot(q1, tl.load(seen1 + I * F + at1), zr)
        hr, slope_r, curve_r = ACT(zr)
        hrd = hr.to(DT)
        scores = dot(hrd, tl.trans(h.to(DT)), scores)
        y0 = dot(hrd, tl.trans(a2), y0)
        if SLOT:
            y1 = dot(hrd, tl.trans(tl.load(seen2 + F * O + at2)), y1)
    y = row0 * y0
    if SLOT:
        y += row1 * y1
    y = dot((scores * (-weight * s2[None, :])).to(DT), u2d, y)
    if out is not None:
        tl.store(out + co, y)
    if NORM:
        centred = y - mean(y)
        y = centred / tl.sqrt(mean(centred * centred) + EPS)
    if RESIDUAL:
        y += tl.load(q + ci).to(tl.float32)
    tl.store(answer + co, y)

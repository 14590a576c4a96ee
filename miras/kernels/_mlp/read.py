"""What queries read, all chunks at once, from the weights and errors that the scan left.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import both, load_bias_rates, paired
from miras.kernels._mlp.blocks import anchor
from miras.kernels._mlp.halves import HALF
from miras.kernels._mlp.links import shared
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import dot, layer_norm, load_rates


@triton.jit(do_not_specialize=["first", "count", "total"])
def read(
    q, k, lr, rows, pairs,  # [b, total C, ...]
    seen1, seen2, kept_u2, squares,  # of the chunks at hand, [b, count, ...]
    seen_b, rates_b,  # of the chunks at hand, fast biases before it, [b, count, J, F + O], and their rates
    out, answer,  # before norm and residual, and after, [b, total C, O]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr, BIASES: tl.constexpr,
    ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, BLOCKS: tl.constexpr,
    LINK: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``zr = rows (q W1) - (pairs s1 q k^T) u1`` and ``out = rows (hr W2) - (pairs s2 hr h^T) u2`` with ``hr = act(zr)``."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    n, chunk, local = at_hand(first, count, total)
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    cc = chunk * C * C + rc[:, None] * C + rc[None, :]

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    u2 = tl.load(kept_u2 + local * C * O + rc[:, None] * O + ro[None, :])
    s1, s2 = load_rates(lr, squares, token, local, rc, C, BOUND)
    t1, t2 = s1, s2
    if BIASES:
        seen_b, last = seen_b + local * J * (F + O), (J - 1) * (F + O)
        t1, t2 = load_bias_rates(rates_b, local, rc, C)
    p1 = (-paired(qq, tl.trans(kk), pairs, cc, s1[None, :], t1[None, :], BIASES)).to(DT)
    row0 = tl.load(rows + chunk * J * C + rc)[:, None]
    row1 = row0
    if SLOT:
        row1 = tl.load(rows + chunk * J * C + C + rc)[:, None]
        y1 = tl.zeros([C, O], tl.float32)
    y0 = tl.zeros([C, O], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        at1 = local * J * I * F + ri[:, None] * F + (f + rb)[None, :]
        at2 = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        a1, a2 = tl.load(seen1 + at1), tl.load(seen2 + at2)
        w1, w2 = a1, a2
        if BLOCKS > 1:
            a1, a2 = anchor(seen1 + at1, seen2 + at2, n, J, I, O, F, BLOCKS)
        z = shared(kk, dot(kk, a1), 0, LINK, L)
        if BIASES:
            z += tl.load(seen_b + f + rb)[None, :]
        h, slope, _curve = ACT(z)
        u1 = (shared(u2, dot(u2, a2), 1, LINK, L, NORM) * slope).to(DT)
        zr = row0 * shared(qq, dot(qq, w1), 0, LINK, L)
        if SLOT:
            zr += row1 * dot(qq, tl.load(seen1 + I * F + at1))
        if BIASES:
            zr += both(row0, row1, tl.load(seen_b + f + rb), tl.load(seen_b + last + f + rb), SLOT)
        hr, _slope, _curve = ACT(dot(p1, u1, zr))
        hrd = hr.to(DT)
        scores = dot(hrd, tl.trans(h.to(DT)), scores)
        if O > HALF:  # one sum
            y0 = dot((hr * row0).to(DT), tl.trans(w2), y0)
            if SLOT:
                y0 = dot((hr * row1).to(DT), tl.trans(tl.load(seen2 + F * O + at2)), y0)
        else:
            y0 = shared(hr, dot(hrd, tl.trans(w2), y0), 1, LINK, L, WIDTH=WIDTH)
            if SLOT:
                y1 = dot(hrd, tl.trans(tl.load(seen2 + F * O + at2)), y1)
    y = y0
    if O <= HALF:
        y = row0 * y0
        if SLOT:
            y += row1 * y1
    if BIASES:
        y += both(row0, row1, tl.load(seen_b + F + ro), tl.load(seen_b + last + F + ro), SLOT)
    if BIASES:
        y = dot(((scores * s2[None, :] + t2[None, :]) * -tl.load(pairs + cc)).to(DT), u2, y)
    else:
        y = dot((scores * (-tl.load(pairs + cc) * s2[None, :])).to(DT), u2, y)
    if out is not None:
        tl.store(out + co, y)
    if NORM:
        y, _scale = layer_norm(y, EPS, WIDTH)
    if RESIDUAL:
        y += tl.load(q + ci).to(tl.float32)
    tl.store(answer + co, y)

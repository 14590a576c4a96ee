"""What queries read, all chunks at once, from the weights and errors that the scan left.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._gated.parts import hidden, load_rate
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import dot, layer_norm


@triton.jit
def met(qq, seen, row0, row1, SLOT: tl.constexpr, STACK: tl.constexpr):
    """What queries read of a hidden matrix and its slot."""
    z = row0 * dot(qq, tl.load(seen))
    if SLOT:
        z += row1 * dot(qq, tl.load(seen + STACK))
    return z


@triton.jit(do_not_specialize=["first", "count", "total"])
def read(
    q, k, lr, rows, pairs,  # [b, total C, ...]
    seen1, seen2, kept_u2, rates,  # of the chunks at hand, [b, count, ...]
    out, answer,  # before norm and residual, and after, [b, total C, O]
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr,
    ACT: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """``out = rows (hr Wd) - (pairs hr h^T) sd u`` with hr from ``rows (q W) - (pairs q k^T) s u`` of gate and up."""
    J: tl.constexpr = 2 if SLOT else 1
    DT = k.dtype.element_ty
    _n, chunk, local = at_hand(first, count, total)
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci, co = token[:, None] * I + ri[None, :], token[:, None] * O + ro[None, :]
    cc = chunk * C * C + rc[:, None] * C + rc[None, :]

    qq, kk = tl.load(q + ci), tl.load(k + ci)
    u = tl.load(kept_u2 + local * C * O + rc[:, None] * O + ro[None, :])
    sg = load_rate(lr, rates, token, local, rc, 0, C, BOUND)[:, None]
    su = load_rate(lr, rates, token, local, rc, 1, C, BOUND)[:, None]
    p1 = (-(dot(qq, tl.trans(kk)) * tl.load(pairs + cc))).to(DT)
    row0 = tl.load(rows + chunk * J * C + rc)[:, None]
    row1 = row0
    if SLOT:
        row1 = tl.load(rows + chunk * J * C + C + rc)[:, None]
        y1 = tl.zeros([C, O], tl.float32)
    y0 = tl.zeros([C, O], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for f in range(0, F, BF):
        to_g = seen1 + local * J * 2 * I * F + ri[:, None] * F + (f + rb)[None, :]
        to_u = to_g + I * F
        to_d = seen2 + local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        ad = tl.load(to_d)
        h, bend_g, bend_u, _turn_g, _turn_u = hidden(dot(kk, tl.load(to_g)), dot(kk, tl.load(to_u)), ACT)
        pulled = dot(u, ad)
        zr = dot(p1, (pulled * bend_g * sg).to(DT), met(qq, to_g, row0, row1, SLOT, 2 * I * F))
        xr = dot(p1, (pulled * bend_u * su).to(DT), met(qq, to_u, row0, row1, SLOT, 2 * I * F))
        hr, _bend_g, _bend_u, _turn_g, _turn_u = hidden(zr, xr, ACT)
        hrd = hr.to(DT)
        scores = dot(hrd, tl.trans(h.to(DT)), scores)
        y0 = dot(hrd, tl.trans(ad), y0)
        if SLOT:
            y1 = dot(hrd, tl.trans(tl.load(to_d + F * O)), y1)
    y = row0 * y0
    if SLOT:
        y += row1 * y1
    sd = load_rate(lr, rates, token, local, rc, 2, C, BOUND)
    y = dot((scores * (-tl.load(pairs + cc) * sd[None, :])).to(DT), u, y)
    if out is not None:
        tl.store(out + co, y)
    if NORM:
        y, _scale = layer_norm(y, EPS)
    if RESIDUAL:
        y += tl.load(q + ci).to(tl.float32)
    tl.store(answer + co, y)

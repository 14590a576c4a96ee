"""What backward has left to do for all chunks at once, after both scans.

Shapes as in `miras.kernels._gated.launch`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl

from miras.kernels._gated.parts import load_rate
from miras.kernels._mlp.meetings import at_hand
from miras.kernels._mlp.parts import bounded_vjp, dot, inner


@triton.jit
def write_vjp(x0, x1, key, row0, row1, s, d_s, SLOT: tl.constexpr):
    """Of one matrix with ``x_i = errors (gradient of W_i)^T``: gradients of the keys, of both rows of into, and of the rates."""
    d_row0, d_row1 = tl.sum(x0 * key, 1), tl.zeros_like(s)
    d_key, d_s = (row0 * s)[:, None] * x0, d_s + row0 * d_row0
    if SLOT:
        d_row1 = tl.sum(x1 * key, 1)
        d_key, d_s = d_key + (row1 * s)[:, None] * x1, d_s + row1 * d_row1
    return d_key, d_row0 * s, d_row1 * s, d_s


@triton.jit(do_not_specialize=["first", "count", "total"])
def write_backward(
    k, lr, inverse, into,  # [b, total C, ...]
    seen1, seen2, kept_u2, squares, rates, h_, u1_, d_rates, late1, late2, dz_,  # of the chunks at hand, [b, count, ...]
    d_k, near, d_lr, d_inverse, d_mix, d_into,  # results [b, total C, ...]; near is part of d_k
    first, count, total,
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    SLOT: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Keys, mixing and rates, one matrix after the other: sums over the hidden width of all three would not fit."""
    J: tl.constexpr = 2 if SLOT else 1
    _n, chunk, local = at_hand(first, count, total)
    ri, ro, rc, rb = tl.arange(0, I), tl.arange(0, O), tl.arange(0, C), tl.arange(0, BF)
    token = chunk * C + rc
    ci = token[:, None] * I + ri[None, :]
    rate, bound = tl.load(lr + token), 0.0
    if BOUND:
        bound = tl.load(inverse + token)
    row0 = tl.load(into + chunk * J * C + rc)
    row1 = row0
    if SLOT:
        row1 = tl.load(into + chunk * J * C + C + rc)
    kf = tl.load(k + ci).to(tl.float32)
    dk = tl.load(near + ci)
    mix00, mix01, mix11 = tl.zeros([I], tl.float32), tl.zeros([I], tl.float32), tl.zeros([I], tl.float32)
    into0, into1, lrs, bounds = tl.zeros_like(rate), tl.zeros_like(rate), tl.zeros_like(rate), tl.zeros_like(rate)
    for m in tl.static_range(2):
        x0, x1 = tl.zeros([C, I], tl.float32), tl.zeros([C, I], tl.float32)
        for f in range(0, F, BF):
            at = (local * J * 2 + m) * I * F + ri[:, None] * F + (f + rb)[None, :]
            cf = (local * 2 + m) * C * F + rc[:, None] * F + (f + rb)[None, :]
            errors, a, e = tl.load(u1_ + cf), tl.load(seen1 + at), tl.load(late1 + at)
            dk = dot(tl.load(dz_ + cf), tl.trans(a), dk)
            x0 = dot(errors, tl.trans(e), x0)
            mix00 += inner(e, a)
            if SLOT:
                slot, f1 = tl.load(seen1 + 2 * I * F + at), tl.load(late1 + 2 * I * F + at)
                x1 = dot(errors, tl.trans(f1), x1)
                mix01, mix11 = mix01 + inner(e, slot), mix11 + inner(f1, slot)
        s, d_s = load_rate(lr, rates, token, local, rc, m, C, BOUND), tl.load(d_rates + (local * 3 + m) * C + rc)
        d_key, d_row0, d_row1, d_s = write_vjp(x0, x1, kf, row0, row1, s, d_s, SLOT)
        dk, into0, into1 = dk + d_key, into0 + d_row0, into1 + d_row1
        if BOUND:
            square = tl.load(squares + (local * 4 + m) * C + rc)
            d_s, d_bound, d_square = bounded_vjp(d_s, rate, bound, tl.sum(kf * kf, 1) * square)
            bounds += d_bound
            dk += (d_square * square)[:, None] * kf
        lrs += d_s
    tl.store(d_k + ci, dk)

    y0, y1 = tl.zeros([C, O], tl.float32), tl.zeros([C, O], tl.float32)
    down00, down01, down11 = tl.zeros([O], tl.float32), tl.zeros([O], tl.float32), tl.zeros([O], tl.float32)
    for f in range(0, F, BF):
        at = local * J * F * O + ro[:, None] * F + (f + rb)[None, :]
        hh = tl.load(h_ + local * C * F + rc[:, None] * F + (f + rb)[None, :])
        a, e = tl.load(seen2 + at), tl.load(late2 + at)
        y0 = dot(hh, tl.trans(e), y0)
        down00 += inner(e, a)
        if SLOT:
            slot, f1 = tl.load(seen2 + F * O + at), tl.load(late2 + F * O + at)
            y1 = dot(hh, tl.trans(f1), y1)
            down01, down11 = down01 + inner(e, slot), down11 + inner(f1, slot)
    u = tl.load(kept_u2 + local * C * O + rc[:, None] * O + ro[None, :]).to(tl.float32)
    s, d_s = load_rate(lr, rates, token, local, rc, 2, C, BOUND), tl.load(d_rates + (local * 3 + 2) * C + rc)
    _d_u, d_row0, d_row1, d_s = write_vjp(y0, y1, u, row0, row1, s, d_s, SLOT)
    if BOUND:
        square = tl.load(squares + (local * 4 + 2) * C + rc) * tl.load(squares + (local * 4 + 3) * C + rc)
        d_s, d_bound, _square = bounded_vjp(d_s, rate, bound, square)
        tl.store(d_inverse + token, bounds + d_bound)
    tl.store(d_lr + token, lrs + d_s)
    tl.store(d_into + chunk * J * C + rc, into0 + d_row0)
    tl.store(d_mix + chunk * J * J, tl.sum(mix00, 0) + tl.sum(down00, 0))
    if SLOT:
        tl.store(d_into + chunk * J * C + C + rc, into1 + d_row1)
        tl.store(d_mix + chunk * 4 + 1, tl.sum(mix01, 0) + tl.sum(down01, 0))
        tl.store(d_mix + chunk * 4 + 2, 0.0)
        tl.store(d_mix + chunk * 4 + 3, tl.sum(mix11, 0) + tl.sum(down11, 0))

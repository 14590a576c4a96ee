"""Triton: the state of a matrix memory from tile to tile where every key channel decays at its own rate, and back.

    d = b + u W                        errors of a tile (without KEYS nothing is predicted: d = b)
    y = asked W - scores d
    W <- kept * W + written^T d        kept: a number a row

One program for a head and a block of BV value channels. Every tile is whole. BI covers the key channels.
"""

import triton
import triton.language as tl

from miras.kernels._matrix.scan import load_tile, load_transposed, product, store_tile


@triton.jit
def block(I, O, C: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr):
    """The head, tokens of a tile, key and value channels of a program, and which of these there are."""
    pid = tl.program_id(0).to(tl.int64)
    i, rv = pid // NV, (pid % NV) * BV + tl.arange(0, BV)
    rc, ri = tl.arange(0, C), tl.arange(0, BI)
    return i, rc, ri, rv, rc < C, ri < I, rv < O


@triton.jit
def chain(
    u, b, asked, scores, written, kept, start, o, end, errors, states, NT, I, O,
    C: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, KEYS: tl.constexpr, SAVE: tl.constexpr,
    FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Forward; SAVE writes the state before every tile and the errors, which backward needs."""
    i, rc, ri, rv, keep_c, keep_i, keep_v = block(I, O, C, BI, BV, NV)
    W = load_tile(start + i * I * O, ri, O, rv, keep_i, keep_v, FULL)
    for n in range(0, NT):
        at = i * NT + n
        seen = W.to(DT)
        D = load_tile(b + at * C * O, rc, O, rv, keep_c, keep_v, FULL).to(tl.float32)
        if KEYS:
            D += product(load_tile(u + at * C * I, rc, I, ri, keep_c, keep_i, FULL), seen, PRECISION)
        d = D.to(DT)
        Y = product(load_tile(asked + at * C * I, rc, I, ri, keep_c, keep_i, FULL), seen, PRECISION)
        Y -= product(load_tile(scores + at * C * C, rc, C, rc, keep_c, keep_c, True), d, PRECISION)
        store_tile(o + at * C * O, rc, O, rv, keep_c, keep_v, Y, FULL)
        if SAVE:
            store_tile(states + at * I * O, ri, O, rv, keep_i, keep_v, seen, FULL)
            store_tile(errors + at * C * O, rc, O, rv, keep_c, keep_v, d, FULL)
        left = load_tile(written + at * C * I, rc, I, ri, keep_c, keep_i, FULL)
        decay = tl.load(kept + at * I + ri, mask=keep_i, other=0.0)
        W = W * decay[:, None] + product(tl.trans(left), d, PRECISION)
    store_tile(end + i * I * O, ri, O, rv, keep_i, keep_v, W, FULL)


@triton.jit
def chain_back(
    u, asked, scores, written, kept, do, d_end, d_errors, d_states, d_start, NT, I, O,
    C: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, KEYS: tl.constexpr,
    FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Gradients of the errors, and of the state after every tile; the others are products of what is stored."""
    i, rc, ri, rv, keep_c, keep_i, keep_v = block(I, O, C, BI, BV, NV)
    dW = load_tile(d_end + i * I * O, ri, O, rv, keep_i, keep_v, FULL)
    for step in range(0, NT):
        at = i * NT + NT - 1 - step
        after = dW.to(DT)
        store_tile(d_states + at * I * O, ri, O, rv, keep_i, keep_v, after, FULL)
        dY = load_tile(do + at * C * O, rc, O, rv, keep_c, keep_v, FULL)
        dD = product(load_tile(written + at * C * I, rc, I, ri, keep_c, keep_i, FULL), after, PRECISION)
        dD -= product(load_transposed(scores + at * C * C, rc, C, keep_c, True), dY, PRECISION)
        d = dD.to(DT)
        store_tile(d_errors + at * C * O, rc, O, rv, keep_c, keep_v, d, FULL)
        decay = tl.load(kept + at * I + ri, mask=keep_i, other=0.0)
        dW = dW * decay[:, None]
        dW += product(tl.trans(load_tile(asked + at * C * I, rc, I, ri, keep_c, keep_i, FULL)), dY, PRECISION)
        if KEYS:
            dW += product(tl.trans(load_tile(u + at * C * I, rc, I, ri, keep_c, keep_i, FULL)), d, PRECISION)
    store_tile(d_start + i * I * O, ri, O, rv, keep_i, keep_v, dW, FULL)

"""Triton: the state of a matrix memory from tile to tile where every value channel decays at its own rate, and back.

    e = b + u W                                        errors of a tile (without KEYS nothing is predicted: e = b)
    base = q W                                         what queries read of the state, before its decay
    W <- exp(z_last) W - a^T (exp(z_last - z) e)       z: running sums of log decays in a tile, a number a column

One program for a head and a block of BV value channels. Every tile is whole. BI covers the key channels.
"""

import triton
import triton.language as tl

from miras.kernels._channels.chain import block
from miras.kernels._matrix.scan import load_tile, product, store_tile


@triton.jit
def chain(
    u, b, q, a, z, start, base, errors, end, states, NT, I, O,
    C: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, KEYS: tl.constexpr, SAVE: tl.constexpr,
    FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Forward; SAVE writes the state before every tile, which backward needs."""
    i, rc, ri, rv, keep_c, keep_i, keep_v = block(I, O, C, BI, BV, NV)
    W = load_tile(start + i * I * O, ri, O, rv, keep_i, keep_v, FULL)
    for n in range(0, NT):
        at = i * NT + n
        seen = W.to(DT)
        E = load_tile(b + at * C * O, rc, O, rv, keep_c, keep_v, FULL).to(tl.float32)
        if KEYS:
            E += product(load_tile(u + at * C * I, rc, I, ri, keep_c, keep_i, FULL), seen, PRECISION)
            store_tile(errors + at * C * O, rc, O, rv, keep_c, keep_v, E, FULL)
        asked = product(load_tile(q + at * C * I, rc, I, ri, keep_c, keep_i, FULL), seen, PRECISION)
        store_tile(base + at * C * O, rc, O, rv, keep_c, keep_v, asked, FULL)
        if SAVE:
            store_tile(states + at * I * O, ri, O, rv, keep_i, keep_v, seen, FULL)
        last = tl.load(z + (at * C + C - 1) * O + rv, mask=keep_v, other=0.0)
        left = tl.exp(last[None, :] - load_tile(z + at * C * O, rc, O, rv, keep_c, keep_v, FULL))
        A = load_tile(a + at * C * I, rc, I, ri, keep_c, keep_i, FULL)
        W = W * tl.exp(last)[None, :] - product(tl.trans(A), (E * left).to(DT), PRECISION)
    store_tile(end + i * I * O, ri, O, rv, keep_i, keep_v, W, FULL)


@triton.jit
def chain_back(
    u, e, q, a, z, d_base, d_errors, d_end, db, dz, d_states, d_start, NT, I, O,
    C: tl.constexpr, BI: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, KEYS: tl.constexpr,
    FULL: tl.constexpr, PRECISION: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Gradients of the errors, of the sums (but for the last one's), and of the state after every tile.

    The others are products and sums of what is stored.
    """
    i, rc, ri, rv, keep_c, keep_i, keep_v = block(I, O, C, BI, BV, NV)
    dW = load_tile(d_end + i * I * O, ri, O, rv, keep_i, keep_v, FULL)
    for step in range(0, NT):
        at = i * NT + NT - 1 - step
        after = dW.to(DT)
        store_tile(d_states + at * I * O, ri, O, rv, keep_i, keep_v, after, FULL)
        last = tl.load(z + (at * C + C - 1) * O + rv, mask=keep_v, other=0.0)
        left = tl.exp(last[None, :] - load_tile(z + at * C * O, rc, O, rv, keep_c, keep_v, FULL))
        dE = -product(load_tile(a + at * C * I, rc, I, ri, keep_c, keep_i, FULL), after, PRECISION) * left
        moved = dE * load_tile(e + at * C * O, rc, O, rv, keep_c, keep_v, FULL).to(tl.float32)
        store_tile(dz + at * C * O, rc, O, rv, keep_c, keep_v, -moved, FULL)
        dW = dW * tl.exp(last)[None, :]
        d_asked = load_tile(d_base + at * C * O, rc, O, rv, keep_c, keep_v, FULL)
        dW += product(tl.trans(load_tile(q + at * C * I, rc, I, ri, keep_c, keep_i, FULL)), d_asked, PRECISION)
        if KEYS:
            dE += load_tile(d_errors + at * C * O, rc, O, rv, keep_c, keep_v, FULL).to(tl.float32)
            seen = load_tile(u + at * C * I, rc, I, ri, keep_c, keep_i, FULL)
            dW += product(tl.trans(seen), dE.to(DT), PRECISION)
        store_tile(db + at * C * O, rc, O, rv, keep_c, keep_v, dE, FULL)
    store_tile(d_start + i * I * O, ri, O, rv, keep_i, keep_v, dW, FULL)

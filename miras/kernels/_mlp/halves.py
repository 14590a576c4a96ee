"""Heads of over 64 channels: products with every output channel are formed 64 channels at a time, because all take too many registers."""

import triton
import triton.language as tl

from miras.kernels._mlp.parts import dot

HALF = tl.constexpr(64)


@triton.jit
def store_products(out, operands, weights, rf, C: tl.constexpr, O: tl.constexpr, F: tl.constexpr, COUNT: tl.constexpr):
    """``sum x W`` over operands ``[C, BF]`` and pointers to transposed matrices ``[O, F]``, of which it takes the columns ``rf``."""
    WIDTH: tl.constexpr = min(O, HALF)
    rc, rh = tl.arange(0, C), tl.arange(0, WIDTH)
    for o in tl.static_range(0, O, WIDTH):
        at = (o + rh)[:, None] * F + rf[None, :]
        total = tl.zeros([C, WIDTH], tl.float32)
        for i in tl.static_range(0, COUNT):
            total = dot(operands[i], tl.trans(tl.load(weights[i] + at)), total)
        tl.store(out + rc[:, None] * O + (o + rh)[None, :], total)


@triton.jit
def store_pulled(
    out, d_pulled, a2, h, row0, row1, late2, rf, C: tl.constexpr, O: tl.constexpr, F: tl.constexpr, SLOT: tl.constexpr
):
    """The gradient of errors at the output: through those of the hidden width, and what wrote memory and slot."""
    h0 = (h.to(tl.float32) * row0).to(h.dtype)
    if SLOT:
        h1 = (h.to(tl.float32) * row1).to(h.dtype)
        store_products(out, (d_pulled, h0, h1), (a2, late2, late2 + F * O), rf, C, O, F, 3)
    else:
        store_products(out, (d_pulled, h0), (a2, late2), rf, C, O, F, 2)


@triton.jit
def squared_norms(x, C: tl.constexpr, I: tl.constexpr):
    """Of the rows of ``[C, I]``."""
    at = tl.arange(0, C)[:, None] * I + tl.arange(0, HALF)[None, :]
    total = tl.zeros([C], tl.float32)
    for i in tl.static_range(0, I, HALF):
        half = tl.load(x + i + at).to(tl.float32)
        total += tl.sum(half * half, 1)
    return total

"""Triton: elementwise links of the built-in retentions, and what a kernel does to accumulators around them.

A link is two functions, ``(a, constants) -> w`` and ``(a, d_w, constants) -> d_a``; see `miras.retentions.Retention.triton_link`.
"""

import triton
import triton.language as tl

from miras.kernels._biases import tanh as hyperbolic


@triton.jit
def committed(stack, n, CEILING: tl.constexpr, J: tl.constexpr):
    """The stack with which tile n starts, from what the one before left: memories above the ceiling commit to it."""
    new = (tl.where(n > 0, tl.minimum(stack[0], CEILING), stack[0]),)
    for j in tl.static_range(1, J):
        new = new + (stack[j],)
    return new


@triton.jit
def weights(a, keep_i, keep_v, LINK: tl.constexpr, CONSTANTS: tl.constexpr, FULL: tl.constexpr):
    """The link of an accumulator; zero outside of the head, where a link of zero may be anything."""
    w = LINK(a, CONSTANTS)
    if not FULL:
        w = tl.where(keep_i[:, None] & keep_v[None, :], w, 0.0)
    return w


@triton.jit
def logistic(a, c):
    return tl.sigmoid(a)


@triton.jit
def logistic_vjp(a, d, c):
    w = tl.sigmoid(a)
    return d * w * (1.0 - w)


@triton.jit
def tanh(a, c):
    return hyperbolic(a)


@triton.jit
def tanh_vjp(a, d, c):
    w = hyperbolic(a)
    return d * (1.0 - w * w)


@triton.jit
def exponentiated(a, c):
    """``c = (largest exponent read,)``."""
    return tl.exp(tl.minimum(a, c[0]))


@triton.jit
def exponentiated_vjp(a, d, c):
    return tl.where(a > c[0], 0.0, d * tl.exp(tl.minimum(a, c[0])))

"""Triton: elementwise links of the built-in retentions, and what a kernel does to accumulators around them.

A link is two functions, ``(a, constants) -> w`` and ``(a, d_w, constants) -> d_a``; see `miras.retentions.Retention.triton_link`.
With a threshold, one number a chunk, they are ``(a, threshold, constants) -> w`` and
``(a, threshold, d_w, constants) -> (d_a, d_threshold)``: LEVEL is 1, or 2 where memories commit through their link.
"""

import triton
import triton.language as tl

from miras.kernels._shared.biases import tanh as hyperbolic


@triton.jit
def committed(stack, n, CEILING: tl.constexpr, J: tl.constexpr):
    """The stack with which tile n starts, from what the one before left: memories above the ceiling commit to it."""
    return replaced(stack, tl.where(n > 0, tl.minimum(stack[0], CEILING), stack[0]), J)


@triton.jit
def replaced(stack, memory, J: tl.constexpr):
    """The stack with another memory."""
    new = (memory,)
    for j in tl.static_range(1, J):
        new = new + (stack[j],)
    return new


@triton.jit
def weights(
    a, keep_i, keep_v, level, at, LINK: tl.constexpr, CONSTANTS: tl.constexpr, LEVEL: tl.constexpr, FULL: tl.constexpr
):
    """The link of an accumulator; zero outside of the head, where a link of zero may be anything."""
    if LEVEL > 0:
        w = LINK(a, tl.load(level + at), CONSTANTS)
    else:
        w = LINK(a, CONSTANTS)
    if not FULL:
        w = tl.where(keep_i[:, None] & keep_v[None, :], w, 0.0)
    return w


@triton.jit
def weights_vjp(
    a, d_w, keep_i, keep_v, level, d_level, at, to,
    LINK_VJP: tl.constexpr, CONSTANTS: tl.constexpr, LEVEL: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The gradient of an accumulator under its link, zero outside as well; that of a threshold is stored."""
    if LEVEL > 0:
        d_a, d_threshold = LINK_VJP(a, tl.load(level + at), d_w, CONSTANTS)
        if not FULL:
            d_threshold = tl.where(keep_i[:, None] & keep_v[None, :], d_threshold, 0.0)
        tl.store(d_level + to, tl.sum(tl.sum(d_threshold, 1), 0))
    else:
        d_a = LINK_VJP(a, d_w, CONSTANTS)
    if not FULL:
        d_a = tl.where(keep_i[:, None] & keep_v[None, :], d_a, 0.0)
    return d_a


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


@triton.jit
def soft_threshold(a, threshold, c):
    """``c = (whether it is smooth,)``; what is within the threshold is gone, and below zero there is none."""
    if c[0] == 1:
        w = smooth_threshold(a, threshold)
    else:
        t = tl.maximum(threshold, 0.0)
        w = a - tl.minimum(tl.maximum(a, -t), t)
    return w


@triton.jit
def soft_threshold_vjp(a, threshold, d, c):
    """At a threshold of zero that of the identity, where ``a`` is zero too."""
    if c[0] == 1:
        d_a, d_threshold = smooth_threshold_vjp(a, threshold, d)
    else:
        d_a = tl.where(tl.abs(a) > tl.where(threshold > 0, threshold, -1.0), d, 0.0)
        d_threshold = tl.where(threshold > 0, tl.where(a > 0, -d_a, d_a), 0.0)
    return d_a, d_threshold


@triton.jit
def arc_tangent(x):
    """To 1e-7: a polynomial up to tan(pi/8), to which larger numbers are taken back."""
    y = tl.abs(x)
    far, middle = y > 2.41421356, y > 0.41421356
    z = tl.where(far, -1.0 / tl.maximum(y, 1.0), tl.where(middle, (y - 1.0) / (y + 1.0), y))
    s = z * z
    p = -0.333333318 + s * (0.199995502 + s * (-0.142642344 + s * (0.10746313 - 0.0645941405 * s)))
    y = tl.where(far, 1.57079633, tl.where(middle, 0.785398163, 0.0)) + (z + z * s * p)
    return tl.where(x < 0, -y, y)


@triton.jit
def smooth_threshold(a, threshold):
    """``2/pi |a| atan(a / threshold)``, and the accumulator itself where there is no threshold."""
    t = tl.maximum(threshold, 1e-12)
    return tl.where(threshold > 0, 0.636619772 * tl.abs(a) * arc_tangent(a / t), a)


@triton.jit
def smooth_threshold_vjp(a, threshold, d):
    t = tl.maximum(threshold, 1e-12)
    r = a / t
    steep = r / (1.0 + r * r)
    d_a = 0.636619772 * (tl.where(a < 0, -1.0, 1.0) * arc_tangent(r) + tl.where(a < 0, -steep, steep))
    d_t = tl.where(threshold > 1e-12, -0.636619772 * tl.abs(r) * steep, 0.0)
    return tl.where(threshold > 0, d * d_a, d), d * d_t

"""Triton: residuals of the built-in biases and their pull-backs.

``residual(p, v, g, c)`` is the error ``[BC, BV]`` from the prediction, the value, the bias's gate (``[BC, 1]`` or
``[BC, BV]``, 0.0 if it has none) and its constants, all float32. ``vjp(p, v, g, d, c)`` is what a gradient ``d`` of that
error becomes for ``p``, ``v`` and ``g``. Rows that do not exist are zero.
"""

import triton
import triton.language as tl


@triton.jit
def dot(p, v, g, c):
    return -v + 0.0 * p


@triton.jit
def dot_vjp(p, v, g, d, c):
    return 0.0 * d, -d, d


@triton.jit
def l2(p, v, g, c):
    return c[0] * (p - v)


@triton.jit
def l2_vjp(p, v, g, d, c):
    return c[0] * d, -c[0] * d, d


@triton.jit
def affine(p, v, g, c):
    return g * p + v


@triton.jit
def affine_vjp(p, v, g, d, c):
    return g * d, d, p * d


@triton.jit
def tanh(x):
    """By the exponential that cannot overflow."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def sign(r, c):
    """The smooth sign: ``c = (1, nu)`` for tanh, ``(0, eps)`` for the root."""
    if c[0] == 1:
        s = tanh(c[1] * r)
    else:
        s = r / tl.sqrt(r * r + c[1])
    return s


@triton.jit
def sign_slope(r, c):
    if c[0] == 1:
        s = tanh(c[1] * r)
        out = c[1] * (1.0 - s * s)
    else:
        root = tl.sqrt(r * r + c[1])
        out = c[1] / (root * root * root)
    return out


@triton.jit
def l1(p, v, g, c):
    return sign(p - v, c)


@triton.jit
def l1_vjp(p, v, g, d, c):
    back = sign_slope(p - v, c) * d
    return back, -back, d


@triton.jit
def power(x, y: tl.constexpr):
    """``x ** y`` for x > 0."""
    if y == 0:
        out = 0.0 * x + 1.0
    elif y == 1:
        out = x
    elif y == 2:
        out = x * x
    else:
        out = tl.exp(y * tl.log(x))
    return out


@triton.jit
def lp(p, v, g, c):
    """``c = (way of smoothing, nu or eps, power, eps)``."""
    r = p - v
    size = tl.sqrt(r * r + c[3])
    return c[2] * sign(r, c) * power(size, c[2] - 1)


@triton.jit
def lp_vjp(p, v, g, d, c):
    r = p - v
    size = tl.sqrt(r * r + c[3])
    rise = sign_slope(r, c) * power(size, c[2] - 1) + (c[2] - 1) * sign(r, c) * power(size, c[2] - 2) * r / size
    back = c[2] * rise * d
    return back, -back, d


@triton.jit
def log_cosh(p, v, g, c):
    return tanh(p - v)


@triton.jit
def log_cosh_vjp(p, v, g, d, c):
    t = tanh(p - v)
    back = (1.0 - t * t) * d
    return back, -back, d


@triton.jit
def huber(p, v, g, c):
    return tl.minimum(tl.maximum(p - v, -g), g)


@triton.jit
def huber_vjp(p, v, g, d, c):
    r = p - v
    back = tl.where(tl.abs(r) <= g, d, 0.0)
    return back, -back, tl.where(r > g, d, tl.where(r < -g, -d, 0.0))


@triton.jit
def square_sum(x):
    return tl.sum(x * x, 1)[:, None]


@triton.jit
def huber_norm(p, v, g, c):
    r = p - v
    square = square_sum(r)
    inside = square <= g * g
    return r * tl.where(inside, 1.0, g / tl.sqrt(tl.where(inside, 1.0, square)))


@triton.jit
def huber_norm_vjp(p, v, g, d, c):
    r = p - v
    square = square_sum(r)
    inside = square <= g * g
    norm = tl.sqrt(tl.where(inside, 1.0, square))
    along = tl.sum(d * r, 1)[:, None]
    back = tl.where(inside, d, g / norm * (d - along * r / (norm * norm)))
    return back, -back, tl.where(inside, 0.0, r * d / norm)


@triton.jit
def square_size(r, c):
    """The square of what the threshold is compared with; a root mean square takes rows that are not padded."""
    if c[3] == 2:
        out = tl.max(r * r, 1)[:, None]
    elif c[3] == 1:
        out = square_sum(r) / r.shape[1]
    else:
        out = square_sum(r)
    return out


@triton.jit
def yaad(p, v, g, c):
    """``c = (way of smoothing, nu or eps, factor of the square, what is compared: 0 for l2, 1 for rms, 2 for max)``."""
    r = p - v
    return tl.where(square_size(r, c) <= g * g, c[2] * r, g * sign(r, c))


@triton.jit
def yaad_vjp(p, v, g, d, c):
    r = p - v
    small = square_size(r, c) <= g * g
    back = tl.where(small, c[2] * d, g * sign_slope(r, c) * d)
    return back, -back, tl.where(small, 0.0, sign(r, c) * d)


@triton.jit
def value_shift(p, v, g, c):
    r = p - v
    return r + g * r / tl.sqrt(square_sum(r) + c[0])


@triton.jit
def value_shift_vjp(p, v, g, d, c):
    r = p - v
    norm = tl.sqrt(square_sum(r) + c[0])
    along = tl.sum(d * r, 1)[:, None]
    back = d + g * (d - along * r / (norm * norm)) / norm
    return back, -back, r * d / norm

"""Pieces the kernels of the perceptron share: activations, norms, the error at its output, and bounded rates."""

import triton
import triton.language as tl

DENSITY = tl.constexpr(0.3989422804014327)  # of the normal distribution at zero
TANH_SCALE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
TANH_CUBIC = tl.constexpr(0.044715)
TINY = tl.constexpr(1e-30)


@triton.jit
def gelu(z):
    """Value, slope and curvature, as of every activation here.

    The tail of the normal distribution is the density times a polynomial of ``1 / (1 + c |z|)``, wrong by 8e-8 at most
    (Abramowitz and Stegun 7.1.26), because an error function takes longer than the products around it.
    """
    bell = tl.exp(-0.5 * z * z)
    t = 1 / (1 + 0.23164189 * tl.abs(z))
    tail = bell * t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    below = tl.where(z < 0, tail, 1 - tail)
    density = DENSITY * bell
    return z * below, below + z * density, density * (2 - z * z)


@triton.jit
def gelu_tanh(z):
    square = z * z
    gate = tl.sigmoid(z * (TANH_SCALE * (1 + TANH_CUBIC * square)))
    inner = TANH_SCALE * (1 + 3 * TANH_CUBIC * square)
    rise = gate * (1 - gate)
    curve = rise * (2 * inner + z * (1 - 2 * gate) * inner * inner + 6 * TANH_SCALE * TANH_CUBIC * square)
    return z * gate, gate + z * rise * inner, curve


@triton.jit
def silu(z):
    gate = tl.sigmoid(z)
    rise = gate * (1 - gate)
    return z * gate, gate + z * rise, rise * (2 + z * (1 - 2 * gate))


@triton.jit
def relu(z):
    on = tl.where(z > 0, 1.0, 0.0)
    return z * on, on, on * 0


@triton.jit
def relu2(z):
    on = tl.where(z > 0, 1.0, 0.0)
    return z * z * on, 2 * z * on, 2 * on


@triton.jit
def tanh(z):
    h = 2 * tl.sigmoid(2 * z) - 1
    return h, 1 - h * h, -2 * h * (1 - h * h)


@triton.jit
def identity(z):
    return z, z * 0 + 1, z * 0


@triton.jit
def dot(a, b, total=None):
    """``total + a b``, without rounding float32 operands to tf32."""
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def inner(a, b):
    """The inner products of the rows of two matrices."""
    return tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)


@triton.jit
def load_gate(gate, token, channel, here, GATE: tl.constexpr):
    """The bias's gate of some rows: none, one a token, or one a token and channel."""
    g = 0.0
    if GATE == 1:
        g = tl.load(gate + token, mask=here, other=1.0)[:, None]
    if GATE == 2:
        g = tl.load(gate + channel, mask=here[:, None], other=1.0)
    return g


@triton.jit
def mean(x, WIDTH: tl.constexpr = 0):
    """Of the first channels, behind which there are zeros; 0 stands for all."""
    return (tl.sum(x, 1) / (WIDTH if WIDTH else x.shape[1]))[:, None]


@triton.jit
def centre(x, WIDTH: tl.constexpr):
    """``x - mean(x)`` in these channels, and zeros behind them as before."""
    x -= mean(x, WIDTH)
    if WIDTH and x.shape[1] > WIDTH:
        x = tl.where(tl.arange(0, x.shape[1])[None, :] < WIDTH, x, 0.0)
    return x


@triton.jit
def layer_norm(x, EPS: tl.constexpr, WIDTH: tl.constexpr = 0):
    """The normed rows, and what they were multiplied with once they were centred."""
    centred = centre(x, WIDTH)
    scale = tl.rsqrt(mean(centred * centred, WIDTH) + EPS)
    return centred * scale, scale


@triton.jit
def error(
    o, k, v, gate, BIAS: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    WIDTH: tl.constexpr = 0,
):  # fmt: skip
    """The error at the output of the second matrix, and what its derivative needs: normed output, scale, error."""
    y = o
    scale = tl.full([o.shape[0], 1], 1.0, tl.float32)
    if NORM:
        y, scale = layer_norm(o, EPS, WIDTH)
    answer = y
    if RESIDUAL:
        answer += k
    e = BIAS(answer, v, gate, P)
    u = e
    if NORM:
        u = (centre(e, WIDTH) - y * mean(e * y, WIDTH)) * scale
    return u, y, scale, e


@triton.jit
def error_vjp(
    d, u, y, scale, e, k, v, gate, VJP: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    WIDTH: tl.constexpr = 0,
):  # fmt: skip
    """Gradients of `error` with respect to o, to the answer (so to k, where there is a residual), to v and to the gate."""
    d_e = d
    if NORM:
        d_e = (centre(d, WIDTH) - y * mean(d * y, WIDTH)) * scale
    answer = y
    if RESIDUAL:
        answer += k
    d_answer, d_v, d_gate = VJP(answer, v, gate, d_e, P)
    d_o = d_answer
    if NORM:
        d_y = d_answer - scale * (d * mean(e * y, WIDTH) + e * mean(d * y, WIDTH))
        d_o = (centre(d_y, WIDTH) - y * mean(d_y * y, WIDTH)) * scale - scale * y * mean(d * u, WIDTH)
    return d_o, d_answer, d_v, d_gate


@triton.jit
def layer_norm_vjp(d, x, EPS: tl.constexpr, WIDTH: tl.constexpr = 0):
    """The gradient at the input of the layer norm of the answers."""
    y, scale = layer_norm(x, EPS, WIDTH)
    return (centre(d, WIDTH) - y * mean(d * y, WIDTH)) * scale


@triton.jit
def bounded_rate(lr, inverse, square):
    """The learning rate divided by one plus the norm of its step; ``square`` is that of the gradient's norm."""
    return lr / (1 + tl.sqrt(square + TINY) * lr * inverse)


@triton.jit
def bounded_vjp(d_rate, lr, inverse, square):
    """Gradients of `bounded_rate` with respect to the rate, to its bound, and to half of ``square``."""
    norm = tl.sqrt(square + TINY)
    damp = 1 + norm * lr * inverse
    shrink = d_rate / (damp * damp)
    return shrink, -shrink * lr * lr * norm, -shrink * lr * lr * inverse / norm


@triton.jit
def clipped(x, LIMIT: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit
def load_rates(lr, squares, token, local, rc, C: tl.constexpr, BOUND: tl.constexpr):
    """The rates of first and second matrix, bounded by the scan."""
    s1 = tl.load(lr + token)
    s2 = s1
    if BOUND:
        s1, s2 = tl.load(squares + (local * 5 + 3) * C + rc), tl.load(squares + (local * 5 + 4) * C + rc)
    return s1, s2

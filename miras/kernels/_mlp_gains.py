r"""A fast gain and shift behind the layer norm of a perceptron: ``answer = gain norm(o) + shift``, plus the key if that is added.

With ``y = norm(o)`` and the bias's error e at the answer, a token's errors are ``e y`` at the gain, ``e`` at the shift and
``u2 = N(gain e)`` at o, where ``N x = scale (x - mean(x) - y mean(x y))`` is the derivative of the norm, its own transpose. Gain and
shift are written like matrices, ``g_i' = sum_j mix_ij g_j + sum_t into_it r_t (e y)_t``, with rates r of their own under a bound.

Backward, from the gradients d of u2, L of the stacks after the chunk and R of ``r e y`` and ``r e`` from what queries read: those
products get ``D = R + sum_i into_i L_i``, both errors ``r D`` and what the bound adds, hence ``p`` at ``e y`` and ``s`` at e, and

    w = gain e,  d_e = p y + s + gain N d,  (d_answer, d_v, d_gate) = vjp(d_e),
    d_y = p e - scale (d mean(w y) + w mean(d y)) + gain d_answer,  d_o = N d_y - scale y mean(d u2),
    d_gain = sum_t (e N d + y d_answer),  d_shift = sum_t d_answer.

Both of a head lie behind each other, ``[2 O]``. Every program has all of them; its rows of the sums over tokens it tells the others
where they meet anyway. What queries read is after the norm, and so in `miras.kernels._mlp_answers`.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_biases import both, mixed
from miras.kernels._mlp_parts import add_up, bounded_rate, bounded_vjp, mean


@triton.jit
def load_gains(gains, ro, O: tl.constexpr, SLOT: tl.constexpr):
    """Gain and shift, then those of their slot; the memory's in its place without one."""
    gain, shift = tl.load(gains + ro), tl.load(gains + O + ro)
    gain_slot, shift_slot = gain, shift
    if SLOT:
        gain_slot, shift_slot = tl.load(gains + 2 * O + ro), tl.load(gains + 3 * O + ro)
    return gain, shift, gain_slot, shift_slot


@triton.jit
def store_gains(gains, gain, shift, gain_slot, shift_slot, ro, tile, O: tl.constexpr, SLOT: tl.constexpr):
    """What `load_gains` loads, by the first tile."""
    if tile == 0:
        tl.store(gains + ro, gain)
        tl.store(gains + O + ro, shift)
        if SLOT:
            tl.store(gains + 2 * O + ro, gain_slot)
            tl.store(gains + 3 * O + ro, shift_slot)


@triton.jit
def gained_error(
    o, k, v, gate, gain, shift, BIAS: tl.constexpr, P: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr
):
    """As `miras.kernels._mlp_parts.error`."""
    centred = o - mean(o)
    scale = tl.rsqrt(mean(centred * centred) + EPS)
    y = centred * scale
    answer = y * gain[None, :] + shift[None, :]
    if RESIDUAL:
        answer += k
    e = BIAS(answer, v, gate, P)
    w = e * gain[None, :]
    return (w - mean(w) - y * mean(w * y)) * scale, y, scale, e


@triton.jit
def tell_gains(x, s, meet, ro, here, O: tl.constexpr):
    """Sums over this program's rows, for the gain and for the shift."""
    tl.store(meet + ro, tl.sum(tl.where(here[:, None], x, 0.0), 0))
    tl.store(meet + O + ro, tl.sum(tl.where(here[:, None], s, 0.0), 0))


@triton.jit
def hear_gains(gain, shift, meet, ro, O: tl.constexpr, STRIDE: tl.constexpr, TILES: tl.constexpr):
    """With what all tiles told added."""
    gain += add_up(meet, ro, STRIDE, ro < O, TILES)
    shift += add_up(meet, O + ro, STRIDE, ro < O, TILES)
    return gain, shift


@triton.jit
def write_gains(
    e, y, errors, lr, inverse, into, first, meet, rr, ro, here, C: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr,
    BOUND: tl.constexpr,
):  # fmt: skip
    """Keeps the errors of some rows of the chunk whose first token is ``first``, and tells what they add to memory and slot."""
    at, ey = rr[:, None] * 2 * O + ro[None, :], e * y
    tl.store(errors + at, ey, mask=here[:, None])
    tl.store(errors + O + at, e, mask=here[:, None])
    rate = tl.load(lr + first + rr, mask=here, other=0.0)
    r_gain, r_shift = rate, rate
    if BOUND:
        bound = tl.load(inverse + first + rr, mask=here, other=0.0)
        r_gain = bounded_rate(rate, bound, tl.sum(ey * ey, 1))
        r_shift = bounded_rate(rate, bound, tl.sum(e * e, 1))
    row = tl.load(into + rr, mask=here, other=0.0)
    tell_gains(ey * (row * r_gain)[:, None], e * (row * r_shift)[:, None], meet, ro, here, O)
    if SLOT:
        row = tl.load(into + C + rr, mask=here, other=0.0)
        tell_gains(ey * (row * r_gain)[:, None], e * (row * r_shift)[:, None], meet + 2 * O, ro, here, O)


@triton.jit
def next_gains(
    gain, shift, gain_slot, shift_slot, mix, meet, ro, O: tl.constexpr, SLOT: tl.constexpr, TILES: tl.constexpr
):
    """Those after the chunk, from those before it and what `write_gains` of all tiles told."""
    STRIDE: tl.constexpr = (4 if SLOT else 2) * O
    gain, shift, gain_slot, shift_slot = mixed(gain, shift, gain_slot, shift_slot, mix, False, SLOT)
    gain, shift = hear_gains(gain, shift, meet, ro, O, STRIDE, TILES)
    if SLOT:
        gain_slot, shift_slot = hear_gains(gain_slot, shift_slot, meet + 2 * O, ro, O, STRIDE, TILES)
    return gain, shift, gain_slot, shift_slot


@triton.jit
def written_gains_vjp(
    e, y, d_gain, d_shift, d_gain_slot, d_shift_slot, d_errors, lr, inverse, into, first, rr, ro, here,
    C: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """``p`` and ``s`` of some rows."""
    at, ey = rr[:, None] * 2 * O + ro[None, :], e * y
    row0 = tl.load(into + rr, mask=here, other=0.0)[:, None]
    row1 = row0
    if SLOT:
        row1 = tl.load(into + C + rr, mask=here, other=0.0)[:, None]
    p = tl.load(d_errors + at, mask=here[:, None], other=0.0) + both(row0, row1, d_gain, d_gain_slot, SLOT)
    s = tl.load(d_errors + O + at, mask=here[:, None], other=0.0) + both(row0, row1, d_shift, d_shift_slot, SLOT)
    rate = tl.load(lr + first + rr, mask=here, other=0.0)
    if BOUND:
        bound = tl.load(inverse + first + rr, mask=here, other=0.0)
        square = tl.sum(ey * ey, 1)
        _lr, _bound, d_square = bounded_vjp(tl.sum(p * ey, 1), rate, bound, square)
        p = p * bounded_rate(rate, bound, square)[:, None] + d_square[:, None] * ey
        square = tl.sum(e * e, 1)
        _lr, _bound, d_square = bounded_vjp(tl.sum(s * e, 1), rate, bound, square)
        s = s * bounded_rate(rate, bound, square)[:, None] + d_square[:, None] * e
    else:
        p, s = p * rate[:, None], s * rate[:, None]
    return p, s


@triton.jit
def before_gains(
    d_gain, d_shift, d_gain_slot, d_shift_slot, mix, d_seen, ro, O: tl.constexpr, SLOT: tl.constexpr
):
    """Gradients of those before the chunk, but for what its errors add."""
    d_gain, d_shift, d_gain_slot, d_shift_slot = mixed(d_gain, d_shift, d_gain_slot, d_shift_slot, mix, True, SLOT)
    gain, shift, gain_slot, shift_slot = load_gains(d_seen, ro, O, SLOT)
    d_gain, d_shift = d_gain + gain, d_shift + shift
    if SLOT:
        d_gain_slot, d_shift_slot = d_gain_slot + gain_slot, d_shift_slot + shift_slot
    return d_gain, d_shift, d_gain_slot, d_shift_slot


@triton.jit
def gained_error_vjp(
    d, p, s, u, y, scale, e, k, v, gate, gain, shift, meet, ro, here,
    O: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """As `miras.kernels._mlp_parts.error_vjp`; tells what the rows give to gain and shift."""
    w, d_w = e * gain[None, :], (d - mean(d) - y * mean(d * y)) * scale
    answer = y * gain[None, :] + shift[None, :]
    if RESIDUAL:
        answer += k
    d_answer, d_v, d_gate = VJP(answer, v, gate, p * y + s + gain[None, :] * d_w, P)
    tell_gains(e * d_w + y * d_answer, d_answer, meet, ro, here, O)
    d_y = p * e - scale * (d * mean(w * y) + w * mean(d * y)) + gain[None, :] * d_answer
    d_o = (d_y - mean(d_y) - y * mean(d_y * y)) * scale - scale * y * mean(d * u)
    return d_o, d_answer, d_v, d_gate

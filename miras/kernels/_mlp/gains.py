r"""A fast gain and shift behind the layer norm of a perceptron: ``answer = gain norm(o) + shift``, plus the key if that is added.

With ``y = norm(o)`` and the bias's error e at the answer, a token's errors are ``e y`` at the gain, ``e`` at the shift and
``u2 = N(gain e)`` at o, where ``N x = scale (x - mean(x) - y mean(x y))`` is the derivative of the norm, its own transpose. Gain and
shift are written like matrices, ``g_i' = sum_j mix_ij g_j + sum_t into_it r_t (e y)_t``, with rates r of their own under a bound.

Backward, from the gradients d of u2, L of the stacks after the chunk and R of ``r e y`` and ``r e`` from what queries read: those
products get ``D = R + sum_i into_i L_i``, both errors ``r D`` and what the bound adds, hence ``p`` at ``e y`` and ``s`` at e, and

    w = gain e,  d_e = p y + s + gain N d,  (d_answer, d_v, d_gate) = vjp(d_e),
    d_y = p e - scale (d mean(w y) + w mean(d y)) + gain d_answer,  d_o = N d_y - scale y mean(d u2),
    d_gain = sum_t (e N d + y d_answer),  d_shift = sum_t d_answer.

Both of a head lie behind each other, ``[2 O]``. Every program has all of them, in memory, since its registers are full, and tells
the others the sums over its tokens where they meet anyway: ``meet [b, TILES, 2, J, 2 O]`` are such sums and then its gains. What
queries read is after the norm, and so in `miras.kernels._mlp.answers`.
"""

import triton
import triton.language as tl

from miras.kernels._mlp.biases import both, mixed
from miras.kernels._mlp.meetings import add_up
from miras.kernels._mlp.parts import bounded_rate, bounded_vjp, clipped, layer_norm, mean


@triton.jit
def load_gains(gains, ro, O: tl.constexpr, SLOT: tl.constexpr):
    """Gain and shift, then those of their slot; the memory's in its place without one."""
    gain, shift = tl.load(gains + ro), tl.load(gains + O + ro)
    gain_slot, shift_slot = gain, shift
    if SLOT:
        gain_slot, shift_slot = tl.load(gains + 2 * O + ro), tl.load(gains + 3 * O + ro)
    return gain, shift, gain_slot, shift_slot


@triton.jit
def store_gains(gains, gain, shift, gain_slot, shift_slot, ro, O: tl.constexpr, SLOT: tl.constexpr):
    """What `load_gains` loads."""
    tl.store(gains + ro, gain)
    tl.store(gains + O + ro, shift)
    if SLOT:
        tl.store(gains + 2 * O + ro, gain_slot)
        tl.store(gains + 3 * O + ro, shift_slot)


@triton.jit
def copy_gains(gains, into, ro, O: tl.constexpr, SLOT: tl.constexpr):
    """From one place to another."""
    gain, shift, gain_slot, shift_slot = load_gains(gains, ro, O, SLOT)
    store_gains(into, gain, shift, gain_slot, shift_slot, ro, O, SLOT)


@triton.jit
def gained_error(
    o, k, v, gate, gains, ro, O: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """As `miras.kernels._mlp.parts.error`."""
    gain, shift = tl.load(gains + ro), tl.load(gains + O + ro)
    y, scale = layer_norm(o, EPS)
    answer = y * gain[None, :] + shift[None, :]
    if RESIDUAL:
        answer += k
    e = BIAS(answer, v, gate, P)
    w = e * gain[None, :]
    return (w - mean(w) - y * mean(w * y)) * scale, y, scale, e


@triton.jit
def tell_gains(x, s, told, ro, here, O: tl.constexpr):
    """Sums over this program's rows, for the gain and for the shift."""
    tl.store(told + ro, tl.sum(tl.where(here[:, None], x, 0.0), 0))
    tl.store(told + O + ro, tl.sum(tl.where(here[:, None], s, 0.0), 0))


@triton.jit
def hear_gains(gain, shift, told, ro, O: tl.constexpr, STRIDE: tl.constexpr, TILES: tl.constexpr):
    """With what all tiles told added."""
    gain += add_up(told, ro, STRIDE, ro < O, TILES)
    shift += add_up(told, O + ro, STRIDE, ro < O, TILES)
    return gain, shift


@triton.jit
def write_gains(
    e, y, errors, lr, inverse, into, first, told, rr, ro, here, C: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr,
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
    tell_gains(ey * (row * r_gain)[:, None], e * (row * r_shift)[:, None], told, ro, here, O)
    if SLOT:
        row = tl.load(into + C + rr, mask=here, other=0.0)
        tell_gains(ey * (row * r_gain)[:, None], e * (row * r_shift)[:, None], told + 2 * O, ro, here, O)


@triton.jit
def next_gains(mine, told, mix, ro, O: tl.constexpr, SLOT: tl.constexpr, TILES: tl.constexpr):
    """From those before the chunk to those after it, with what `write_gains` of all tiles told."""
    STRIDE: tl.constexpr = (8 if SLOT else 4) * O
    gain, shift, gain_slot, shift_slot = load_gains(mine, ro, O, SLOT)
    gain, shift, gain_slot, shift_slot = mixed(gain, shift, gain_slot, shift_slot, mix, False, SLOT)
    gain, shift = hear_gains(gain, shift, told, ro, O, STRIDE, TILES)
    if SLOT:
        gain_slot, shift_slot = hear_gains(gain_slot, shift_slot, told + 2 * O, ro, O, STRIDE, TILES)
    tl.debug_barrier()  # all threads have loaded them
    store_gains(mine, gain, shift, gain_slot, shift_slot, ro, O, SLOT)


@triton.jit
def written_gains_vjp(
    e, y, mine, d_errors, lr, inverse, into, first, rr, ro, here,
    C: tl.constexpr, O: tl.constexpr, SLOT: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """``p`` and ``s`` of some rows, from the gradients of the gains after the chunk."""
    d_gain, d_shift, d_gain_slot, d_shift_slot = load_gains(mine, ro, O, SLOT)
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
def earlier_gains(
    mine, told, mix, d_seen, ro, O: tl.constexpr, SLOT: tl.constexpr, BOUND: tl.constexpr, LIMIT: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """From gradients of those after the chunk to those before it, with what `gained_error_vjp` of all tiles told."""
    STRIDE: tl.constexpr = (8 if SLOT else 4) * O
    gain, shift, gain_slot, shift_slot = load_gains(mine, ro, O, SLOT)
    gain, shift, gain_slot, shift_slot = mixed(gain, shift, gain_slot, shift_slot, mix, True, SLOT)
    d_gain, d_shift, d_gain_slot, d_shift_slot = load_gains(d_seen, ro, O, SLOT)
    gain, shift = hear_gains(gain + d_gain, shift + d_shift, told, ro, O, STRIDE, TILES)
    if SLOT:
        gain_slot, shift_slot = gain_slot + d_gain_slot, shift_slot + d_shift_slot
    if BOUND:
        gain, shift = clipped(gain, LIMIT), clipped(shift, LIMIT)
        gain_slot, shift_slot = clipped(gain_slot, LIMIT), clipped(shift_slot, LIMIT)
    tl.debug_barrier()  # all threads have loaded them
    store_gains(mine, gain, shift, gain_slot, shift_slot, ro, O, SLOT)


@triton.jit
def gained_error_vjp(
    d, p, s, u, y, scale, e, k, v, gate, gains, told, ro, here,
    O: tl.constexpr, VJP: tl.constexpr, P: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """As `miras.kernels._mlp.parts.error_vjp`; tells what the rows give to gain and shift."""
    gain, shift = tl.load(gains + ro), tl.load(gains + O + ro)
    w, d_w = e * gain[None, :], (d - mean(d) - y * mean(d * y)) * scale
    answer = y * gain[None, :] + shift[None, :]
    if RESIDUAL:
        answer += k
    d_answer, d_v, d_gate = VJP(answer, v, gate, p * y + s + gain[None, :] * d_w, P)
    tell_gains(e * d_w + y * d_answer, d_answer, told, ro, here, O)
    d_y = p * e - scale * (d * mean(w * y) + w * mean(d * y)) + gain[None, :] * d_answer
    d_o = (d_y - mean(d_y) - y * mean(d_y * y)) * scale - scale * y * mean(d * u)
    return d_o, d_answer, d_v, d_gate

"""Triton: the coefficients of a tile from its gates, and back; `miras.engine.coefficients` in one launch for all tiles.

The retention's propagator A and the filter's E are exponentials of masked cumulative sums of logs. A filter with one slot is
``through = A (r E c + w)`` with r on rows and c on columns; its slot enters the memory as ``A (r m)``, m the running product
of the momenta. Momentum has r = c = 1, w = 0; Nesterov r = momentum, w = 1; QHM r = nu, c = 1 - momentum, w = 1 - nu.

KIND: 0 no slot, 1 momentum, 2 Nesterov, 3 QHM.
"""

import triton
import triton.language as tl

from miras.kernels._coefficients.products import product


@triton.jit
def chain(pointer, token, rc, keep, BC: tl.constexpr, HAS: tl.constexpr, EXACT: tl.constexpr):
    """``[t, s]`` products of the gates after s up to t, their transpose, and those up to t, from logs.

    EXACT sums every stretch by itself, so that a gate of zero is no exception; otherwise stretches are differences of sums
    from the start, and no gate is below exp(-80): enough for narrower operands, and far fewer sums.
    """
    if HAS:
        log = tl.load(pointer + token + rc, mask=keep, other=0.0)
    else:
        log = tl.zeros([BC], tl.float32)
    low, high = rc[:, None] > rc[None, :], rc[:, None] < rc[None, :]
    eye = tl.where(rc[:, None] == rc[None, :], 1.0, 0.0)
    if EXACT:
        upto = tl.cumsum(log, 0)
        straight = tl.cumsum(tl.where(low, log[:, None], 0.0), 0)
        across = tl.cumsum(tl.where(high, log[None, :], 0.0), 1)
    else:
        upto = tl.cumsum(tl.maximum(log, -80.0), 0)
        straight = tl.where(low, upto[:, None] - upto[None, :], 0.0)
        across = tl.where(high, upto[None, :] - upto[:, None], 0.0)
    return tl.where(low, tl.exp(straight), eye), tl.where(high, tl.exp(across), eye), tl.exp(upto), log


@triton.jit
def factors(momentum, nu, KIND: tl.constexpr):
    """What stands on the rows and columns of E, and on the diagonal beside it."""
    one = momentum * 0.0 + 1.0
    if KIND == 2:
        r, c, w = momentum, one, 1.0
    elif KIND == 3:
        r, c, w = one * nu, 1.0 - momentum, 1.0 - nu
    else:
        r, c, w = one, one, 0.0
    return r, c, w


@triton.jit
def at_row(x, rc, row):
    return tl.sum(tl.where(rc == row, x, 0.0), 0)


@triton.jit
def of_row(x, rc, row):
    return tl.sum(tl.where(rc[:, None] == row, x, 0.0), 0)


@triton.jit
def store_readers(
    rows, pairs, at, rc, C, keep, carry, slots, through, J: tl.constexpr, SHIFT: tl.constexpr, FULL: tl.constexpr
):
    """Rows and pairs of every reader; SHIFT puts them one row later and an untouched state into the first."""
    pairs += at * C * C
    row = rc + 1 if SHIFT else rc
    inside, exists = keep & (row < C), row < C
    base = at * J * C
    tl.store(rows + base + row, tl.where(inside, carry, 0.0), mask=exists)
    if J > 1:
        tl.store(rows + base + C + row, tl.where(inside, -slots, 0.0), mask=exists)
    place = pairs + row[:, None] * C + rc[None, :]
    if FULL:
        tl.store(place, through.to(pairs.dtype.element_ty), mask=exists[:, None])
    else:
        through = tl.where(inside[:, None] & keep[None, :], through, 0.0).to(pairs.dtype.element_ty)
        tl.store(place, through, mask=exists[:, None] & (rc < C)[None, :])
    if SHIFT:
        first = tl.where(rc == 0, 1.0, 0.0)
        tl.store(rows + base + rc, first, mask=rc == 0)
        if J > 1:
            tl.store(rows + base + C + rc, 0.0 * first, mask=rc == 0)
        tl.store(pairs + rc, (0.0 * first).to(pairs.dtype.element_ty), mask=rc < C)


@triton.jit
def coefficients(
    log_decay, log_momentum, rows, pairs, into, mix, key_rows, key_pairs, nu, T, C, NT,
    J: tl.constexpr, BC: tl.constexpr, KIND: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr,
    SOLVE: tl.constexpr, DECAYED: tl.constexpr, EXACT: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile."""
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    rc = tl.arange(0, BC)
    left = tl.minimum(T - n * C, C)
    keep, token, end = rc < left, i * T + n * C, left - 1
    A, _, carry, _ = chain(log_decay, token, rc, keep, BC, DECAY, EXACT)
    through, slots = A, carry * 0.0
    own, own_slots = tl.where(rc[:, None] == rc[None, :], 1.0, 0.0), slots
    if KIND > 0:
        E, _, m, log_m = chain(log_momentum, token, rc, keep, BC, True, EXACT)
        r, c, w = factors(tl.exp(log_m), nu, KIND)
        through = product(A * r[None, :], E, PRECISION) * c[None, :] + w * A
        slots = tl.sum(A * (r * m)[None, :], 1)
        own = E * r[:, None] * c[None, :] + w * own
        own_slots = r * m
        tl.store(into + at * J * C + C + rc, tl.where(keep, of_row(E, rc, end) * c, 0.0), mask=rc < C)
        tl.store(mix + at * J * J + 1, -at_row(slots, rc, end))
        tl.store(mix + at * J * J + 2, 0.0)
        tl.store(mix + at * J * J + 3, at_row(m, rc, end))
    tl.store(into + at * J * C + rc, tl.where(keep, -of_row(through, rc, end), 0.0), mask=rc < C)
    tl.store(mix + at * J * J, at_row(carry, rc, end))
    store_readers(rows, pairs, at, rc, C, keep, carry, slots, through, J, PREVIOUS, FULL)
    if SOLVE:
        if DECAYED:
            through -= own
            slots -= own_slots
        store_readers(key_rows, key_pairs, at, rc, C, keep, carry, slots, through, J, not DECAYED, FULL)


@triton.jit
def load_readers(d_rows, d_pairs, at, rc, C, keep, J: tl.constexpr, SHIFT: tl.constexpr, FULL: tl.constexpr):
    """Gradients of what `store_readers` was given."""
    row = rc + 1 if SHIFT else rc
    inside = keep & (row < C)
    d_carry = tl.load(d_rows + at * J * C + row, mask=inside, other=0.0)
    d_slots = d_carry * 0.0
    if J > 1:
        d_slots = -tl.load(d_rows + at * J * C + C + row, mask=inside, other=0.0)
    place = d_pairs + at * C * C + row[:, None] * C + rc[None, :]
    if FULL:
        d_through = tl.load(place, mask=inside[:, None], other=0.0)
    else:
        d_through = tl.load(place, mask=inside[:, None] & keep[None, :], other=0.0)
    return d_carry, d_slots, d_through.to(tl.float32)


@triton.jit
def after(d_log, rc, EXACT: tl.constexpr):
    """From the gradient of every product of gates times that product, ``[t, s]``, that of every gate's log."""
    low = rc[:, None] > rc[None, :]
    d_log = tl.where(low, d_log, 0.0)
    if EXACT:
        out = tl.sum(tl.where(low, tl.cumsum(d_log, 0, reverse=True), 0.0), 1)
    else:
        out = tl.cumsum(tl.sum(d_log, 1) - tl.sum(d_log, 0), 0, reverse=True)
    return out


@triton.jit
def coefficients_backward(
    log_decay, log_momentum, d_rows, d_pairs, d_into, d_mix, d_key_rows, d_key_pairs, d_decay, d_momentum, nu, T, C, NT,
    J: tl.constexpr, BC: tl.constexpr, KIND: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr,
    SOLVE: tl.constexpr, DECAYED: tl.constexpr, EXACT: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the logs."""
    at = tl.program_id(0).to(tl.int64)
    i, n = at // NT, at % NT
    rc = tl.arange(0, BC)
    left = tl.minimum(T - n * C, C)
    keep, token, end = rc < left, i * T + n * C, left - 1
    is_end = rc == end
    A, AT, carry, _ = chain(log_decay, token, rc, keep, BC, DECAY, EXACT)
    d_carry, d_slots, G = load_readers(d_rows, d_pairs, at, rc, C, keep, J, PREVIOUS, FULL)
    G -= tl.where(is_end[:, None], tl.load(d_into + at * J * C + rc, mask=keep, other=0.0)[None, :], 0.0)
    d_carry += tl.where(is_end, tl.load(d_mix + at * J * J), 0.0)
    own, own_slots = G * 0.0, d_slots * 0.0
    if SOLVE:
        key_carry, key_slots, key_G = load_readers(d_key_rows, d_key_pairs, at, rc, C, keep, J, not DECAYED, FULL)
        d_carry += key_carry
        d_slots += key_slots
        G += key_G
        if DECAYED:
            own, own_slots = key_G, key_slots
    dA = G
    if KIND > 0:
        d_slots -= tl.where(is_end, tl.load(d_mix + at * J * J + 1), 0.0)
        E, ET, m, log_m = chain(log_momentum, token, rc, keep, BC, True, EXACT)
        momentum = tl.exp(log_m)
        r, c, w = factors(momentum, nu, KIND)
        dA = product(G * c[None, :], ET, PRECISION) * r[None, :] + w * G
        dA += d_slots[:, None] * (r * m)[None, :]
        Z = product(AT, G, PRECISION) - own
        z = tl.sum(AT * d_slots[None, :], 1) - own_slots
        d_in = tl.load(d_into + at * J * C + C + rc, mask=keep, other=0.0)
        dE = Z * r[:, None] * c[None, :] + tl.where(is_end[:, None], (d_in * c)[None, :], 0.0)
        dm = r * z + tl.where(is_end, tl.load(d_mix + at * J * J + 3), 0.0)
        d_log = after(dE * E, rc, EXACT) + tl.cumsum(dm * m, 0, reverse=True)
        if KIND == 2:
            d_log += momentum * (tl.sum(Z * E, 1) + m * z)
        if KIND == 3:
            d_log -= momentum * (tl.sum(Z * E * r[:, None], 0) + of_row(E, rc, end) * d_in)
        tl.store(d_momentum + token + rc, d_log, mask=keep)
    if DECAY:
        tl.store(
            d_decay + token + rc, after(dA * A, rc, EXACT) + tl.cumsum(d_carry * carry, 0, reverse=True), mask=keep
        )

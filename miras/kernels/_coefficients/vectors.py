"""Triton: coefficients that are of one number a token, of several tiles at once; letters as in `miras.kernels._coefficients.gates`.

Without a slot every propagator is the exponential of a difference of sums of logs, which other kernels form. With momentum
``through = A E`` is a product (`miras.kernels._coefficients.products`), but its last row, and what it leaves of the slot, follow from
recurrences of one number:

    slots_t = a_t slots_{t-1} + m_t          last_s = A_{end, s} + e_{s+1} last_{s+1}
"""

import triton
import triton.language as tl


@triton.jit
def follow(decay, x, other_decay, y):
    """Two steps of ``x_t = decay_t x_{t-1} + y_t`` as one."""
    return decay * other_decay, x * other_decay + y


@triton.jit
def place(TILES, T, C, NT, BC: tl.constexpr, R: tl.constexpr):
    """R tiles: their numbers, first tokens, ends, positions, and which tokens exist."""
    at = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    n = at % NT
    left = tl.minimum(T - n * C, C)
    rc = tl.arange(0, BC)[None, :]
    there = (at < TILES)[:, None]
    return at[:, None], (at // NT * T + n * C)[:, None], (left - 1)[:, None], rc, there, there & (rc < left[:, None])


@triton.jit
def logs(pointer, token, rc, keep, HAS: tl.constexpr):
    if HAS:
        return tl.maximum(tl.load(pointer + token + rc, mask=keep, other=0.0), -80.0)
    return tl.where(keep, 0.0, 0.0)


@triton.jit
def at_end(x, rc, end):
    return tl.sum(tl.where(rc == end, x, 0.0), 1)[:, None]


@triton.jit
def store_rows(rows, at, rc, C, there, keep, carry, slots, J: tl.constexpr, SHIFT: tl.constexpr):
    """What readers multiply memory and slot with; SHIFT as in `miras.kernels._coefficients.gates.store_readers`."""
    row = rc + 1 if SHIFT else rc
    base, exists = rows + at * J * C, there & (row < C)
    tl.store(base + row, tl.where(keep, carry, 0.0), mask=exists)
    if J > 1:
        tl.store(base + C + row, tl.where(keep, -slots, 0.0), mask=exists)
    if SHIFT:
        first = there & (rc == 0)
        tl.store(base + rc, tl.where(first, 1.0, 0.0), mask=first)
        if J > 1:
            tl.store(base + C + rc, tl.where(first, 0.0, 0.0), mask=first)


@triton.jit
def load_rows(d_rows, at, rc, C, keep, J: tl.constexpr, SHIFT: tl.constexpr):
    """Gradients of what `store_rows` was given."""
    row = rc + 1 if SHIFT else rc
    base, inside = d_rows + at * J * C, keep & (row < C)
    d_carry = tl.load(base + row, mask=inside, other=0.0)
    d_slots = d_carry * 0.0
    if J > 1:
        d_slots = -tl.load(base + C + row, mask=inside, other=0.0)
    return d_carry, d_slots


@triton.jit
def totals(
    log_decay, log_momentum, sums, TILES, T, C, NT, BC: tl.constexpr, R: tl.constexpr, DECAY: tl.constexpr
):  # fmt: skip
    """Sums of logs up to every token, those of decays and those of momenta, again for a backward pass."""
    at, token, _, rc, there, keep = place(TILES, T, C, NT, BC, R)
    exists = there & (rc < C)
    tl.store(sums + at * 2 * C + rc, tl.cumsum(logs(log_decay, token, rc, keep, DECAY), 1), mask=exists)
    tl.store(sums + at * 2 * C + C + rc, tl.cumsum(logs(log_momentum, token, rc, keep, True), 1), mask=exists)


@triton.jit
def vectors(
    log_decay, log_momentum, sums, key_sums, rows, into, mix, key_rows, TILES, T, C, NT,
    J: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr,
    SOLVE: tl.constexpr, DECAYED: tl.constexpr,
):  # fmt: skip
    """``sums`` are two rows of a tile: those of decays, and those of momenta, or of decays again where there is no slot.

    Without a slot, ``key_sums`` are the same for keys, whose rows may be those of the token before.
    """
    at, token, end, rc, there, keep = place(TILES, T, C, NT, BC, R)
    log = logs(log_decay, token, rc, keep, DECAY)
    upto = tl.cumsum(log, 1)
    carry, slots = tl.exp(upto), upto * 0.0
    last = tl.exp(at_end(upto, rc, end) - upto)
    exists, second = there & (rc < C), upto
    if J > 1:
        log_m = logs(log_momentum, token, rc, keep, True)
        second = tl.cumsum(log_m, 1)
        m = tl.exp(second)
        _, slots = tl.associative_scan((tl.exp(log), m), 1, follow)
        after = tl.exp(logs(log_momentum + 1, token, rc, keep & (rc < end), True))
        _, last = tl.associative_scan((after, tl.where(keep, last, 0.0)), 1, follow, reverse=True)
        share = tl.exp(at_end(second, rc, end) - second)
        tl.store(into + at * J * C + C + rc, tl.where(keep, share, 0.0), mask=exists)
        tl.store(mix + at * J * J + 1, -at_end(slots, rc, end), mask=there)
        tl.store(mix + at * J * J + 2, at_end(slots, rc, end) * 0.0, mask=there)
        tl.store(mix + at * J * J + 3, at_end(m, rc, end), mask=there)
    tl.store(into + at * J * C + rc, tl.where(keep, -last, 0.0), mask=exists)
    tl.store(mix + at * J * J, at_end(carry, rc, end), mask=there)
    store_rows(rows, at, rc, C, there, keep, carry, slots, J, PREVIOUS)
    if DECAY or J > 1:
        tl.store(sums + at * 2 * C + rc, upto, mask=exists)
        tl.store(sums + at * 2 * C + C + rc, second, mask=exists)
    if SOLVE:
        if DECAY and J == 1:
            if DECAYED:
                tl.store(key_sums + at * 2 * C + rc, upto, mask=exists)
            else:
                tl.store(key_sums + at * 2 * C + rc, upto - log, mask=exists)
            tl.store(key_sums + at * 2 * C + C + rc, upto, mask=exists)
        if DECAYED and J > 1:
            slots -= m
        store_rows(key_rows, at, rc, C, there, keep, carry, slots, J, not DECAYED)


@triton.jit
def vectors_backward(
    log_decay, log_momentum, d_rows, d_sums, d_into, d_mix, d_key_rows, d_key_sums, d_decay, d_momentum, TILES, T, C, NT,
    J: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr,
    SOLVE: tl.constexpr, DECAYED: tl.constexpr,
):  # fmt: skip
    """Gradients of the logs."""
    at, token, end, rc, there, keep = place(TILES, T, C, NT, BC, R)
    log = logs(log_decay, token, rc, keep, DECAY)
    upto = tl.cumsum(log, 1)
    carry = tl.exp(upto)
    d_carry, d_slots = load_rows(d_rows, at, rc, C, keep, J, PREVIOUS)
    own = d_slots * 0.0
    if SOLVE:
        key_carry, key_slots = load_rows(d_key_rows, at, rc, C, keep, J, not DECAYED)
        d_carry += key_carry
        d_slots += key_slots
        if DECAYED:
            own = key_slots
    d_last = -tl.load(d_into + at * J * C + rc, mask=keep, other=0.0)
    reached = tl.where(keep, tl.exp(at_end(upto, rc, end) - upto), 0.0)
    d_carry += tl.where(rc == end, tl.load(d_mix + at * J * J, mask=there, other=0.0), 0.0)
    d_log = tl.where(keep, 0.0, 0.0)
    if J > 1:
        log_m = logs(log_momentum, token, rc, keep, True)
        second = tl.cumsum(log_m, 1)
        m = tl.exp(second)
        d_slots -= tl.where(rc == end, tl.load(d_mix + at * J * J + 1, mask=there, other=0.0), 0.0)
        _, slots = tl.associative_scan((tl.exp(log), m), 1, follow)
        after = tl.exp(logs(log_decay + 1, token, rc, keep & (rc < end), DECAY)) if DECAY else carry
        _, d_slot = tl.associative_scan((after, tl.where(keep, d_slots, 0.0)), 1, follow, reverse=True)
        d_log = d_slot * (slots - m)
        dm = d_slot - own + tl.where(rc == end, tl.load(d_mix + at * J * J + 3, mask=there, other=0.0), 0.0)
        after = tl.exp(logs(log_momentum + 1, token, rc, keep & (rc < end), True))
        _, last = tl.associative_scan((after, reached), 1, follow, reverse=True)
        _, d_reached = tl.associative_scan((tl.exp(log_m), d_last), 1, follow)
        d_log_m = (d_reached - d_last) * last
        d_last = d_reached
        share = tl.load(d_into + at * J * C + C + rc, mask=keep, other=0.0) * tl.exp(at_end(second, rc, end) - second)
        net = tl.load(d_sums + at * 2 * C + C + rc, mask=keep, other=0.0) - share
        net += tl.where(rc == end, tl.sum(share, 1)[:, None], 0.0) + dm * m
        d_log_m += tl.cumsum(tl.where(keep, net, 0.0), 1, reverse=True)
        tl.store(d_momentum + token + rc, d_log_m, mask=keep)
    if DECAY:
        reached *= d_last
        net = d_carry * carry - reached + tl.where(rc == end, tl.sum(reached, 1)[:, None], 0.0)
        net += tl.load(d_sums + at * 2 * C + rc, mask=keep, other=0.0)
        if J == 1:
            net += tl.load(d_sums + at * 2 * C + C + rc, mask=keep, other=0.0)
            if SOLVE:
                row = rc if DECAYED else rc + 1
                net += tl.load(d_key_sums + at * 2 * C + row, mask=keep & (row < C), other=0.0)
                net += tl.load(d_key_sums + at * 2 * C + C + rc, mask=keep, other=0.0)
        d_log += tl.cumsum(tl.where(keep, net, 0.0), 1, reverse=True)
        tl.store(d_decay + token + rc, d_log, mask=keep)

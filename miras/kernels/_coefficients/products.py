"""Triton: propagators of a filter with momentum, ``through = A E``, from sums of logs, and back; see `vectors`."""

import triton
import triton.language as tl


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """A float32 operand of a product in TF32, whose tensor cores would cut off what it has no digits for, always towards zero."""
    if PRECISION == "tf32":
        nearest = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)  # what is no number stays none
    return x


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(rounded(a, PRECISION), rounded(b, PRECISION), input_precision=PRECISION)


@triton.jit
def chain(sums, rc, HAS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """``[t, s]`` products of gates, or ``[s, t]``: an accumulator must not be transposed, which these may become."""
    if TRANSPOSED:
        t, s = rc[None, :], rc[:, None]
    else:
        t, s = rc[:, None], rc[None, :]
    if HAS:
        log = tl.load(sums + rc)
        if TRANSPOSED:
            log = log[None, :] - log[:, None]
        else:
            log = log[:, None] - log[None, :]
        return tl.where(t >= s, tl.exp(log), 0.0)
    return tl.where(t >= s, 1.0, 0.0)


@triton.jit
def store_pairs(pairs, rc, through, BC: tl.constexpr, SHIFT: tl.constexpr):
    row = rc + 1 if SHIFT else rc
    tl.store(pairs + row[:, None] * BC + rc[None, :], through.to(pairs.dtype.element_ty), mask=(row < BC)[:, None])
    if SHIFT:
        tl.store(pairs + rc, tl.where(rc < 0, 1.0, 0.0).to(pairs.dtype.element_ty))


@triton.jit
def products(
    sums, pairs, key_pairs, BC: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr, SOLVE: tl.constexpr,
    DECAYED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of BC tokens, all of which have a place (what they hold where the sequence ends is not read)."""
    at = tl.program_id(0).to(tl.int64)
    rc = tl.arange(0, BC)
    sums += at * 2 * BC
    A, E = chain(sums, rc, DECAY, False), chain(sums + BC, rc, True, False)
    through = product(A, E, PRECISION)
    store_pairs(pairs + at * BC * BC, rc, through, BC, PREVIOUS)
    if SOLVE:
        if DECAYED:
            through -= E
        store_pairs(key_pairs + at * BC * BC, rc, through, BC, not DECAYED)


@triton.jit
def load_gradients(d_pairs, rc, BC: tl.constexpr, SHIFT: tl.constexpr):
    """Gradients of propagators to later tokens are no zeros, but meet the zeros of the factors below."""
    where = d_pairs + rc[:, None] * BC + rc[None, :]
    if SHIFT:
        return tl.load(where + BC, mask=(rc < BC - 1)[:, None], other=0.0).to(tl.float32)
    return tl.load(where).to(tl.float32)


@triton.jit
def products_backward(
    sums, d_pairs, d_key_pairs, d_sums, BC: tl.constexpr, DECAY: tl.constexpr, PREVIOUS: tl.constexpr,
    SOLVE: tl.constexpr, DECAYED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the sums. What stands on a diagonal cancels between a row and a column."""
    at = tl.program_id(0).to(tl.int64)
    rc = tl.arange(0, BC)
    sums, d_sums = sums + at * 2 * BC, d_sums + at * 2 * BC
    G = load_gradients(d_pairs + at * BC * BC, rc, BC, PREVIOUS)
    own = G * 0.0
    if SOLVE:
        K = load_gradients(d_key_pairs + at * BC * BC, rc, BC, not DECAYED)
        G = rounded(G + K, PRECISION)
        if DECAYED:
            own = K
    A = rounded(chain(sums, rc, DECAY, True), PRECISION)
    Z = (tl.dot(A, G, input_precision=PRECISION) - own) * chain(sums + BC, rc, True, False)
    tl.store(d_sums + BC + rc, tl.sum(Z, 1) - tl.sum(Z, 0))
    if DECAY:
        E = rounded(chain(sums + BC, rc, True, True), PRECISION)
        dA = tl.dot(G, E, input_precision=PRECISION) * chain(sums, rc, True, False)
        tl.store(d_sums + rc, tl.sum(dA, 1) - tl.sum(dA, 0))

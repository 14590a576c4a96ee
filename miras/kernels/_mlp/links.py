"""Links at chunk boundaries: weights from accumulators, where a sum runs over the tiles of a head, and the way back.

Every program holds a tile of both accumulators, ``a1 [I, BF]`` and, transposed, ``a2 [O, BF]``. It tells the others what a
sum over its tile gives, they meet, and each forms its tile of the weights. ``L`` are the constants of a link:

* `NORMALISER` (Moneta): ``W = A N^(2 - q)``, ``N^q = weight sum |A|^q + eps^q``; ``L = (q, eps, weight 1, weight 2)``.
* `SOFTMAX` (Memora) along the inputs: ``W = c softmax(A)``; ``L = (c 1, c 2, inputs 1, inputs 2)``. Accumulators are committed,
  ``log softmax(A)``, on the way: weights do not see the shift, so no gradient goes back through it. Such weights are all
  much alike, and what answers differ by, which a norm leaves alone, would be lost in rounding them: kept is how far they
  are from even ones, ``W - c / inputs``, and `shared` adds to products what all weights have in common.
"""

import triton
import triton.language as tl

NORMALISER = tl.constexpr(1)
SOFTMAX = tl.constexpr(2)
NOTHING = tl.constexpr(-1e30)  # the logit of a weight of zero


@triton.jit
def power(x, y: tl.constexpr):
    """``x ** y`` for x >= 0 and y > 0."""
    if y == 2:
        out = x * x
    elif y == 3:
        out = x * x * x
    elif y == 4:
        out = (x * x) * (x * x)
    else:
        out = tl.where(x > 0, tl.exp(y * tl.log(tl.where(x > 0, x, 1.0))), 0.0)
    return out


@triton.jit
def total(x):
    """The sum of a tile."""
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def tell(a1, a2, told, O: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr):
    """Leaves at ``told`` what the other tiles need: for each matrix a scale and a sum of what is divided by it."""
    if LINK == NORMALISER:
        x1, x2 = tl.abs(a1), tl.abs(a2)
        top1, top2 = tl.maximum(tl.max(tl.max(x1, 1), 0), L[1]), tl.maximum(tl.max(tl.max(x2, 1), 0), L[1])
        tl.store(told, top1)
        tl.store(told + 1, total(power(x1 / top1, L[0])))
        tl.store(told + 2, top2)
        tl.store(told + 3, total(power(x2 / top2, L[0])))
    else:
        at, top = tl.arange(0, O), tl.max(a2, 1)
        tl.store(told + at, top)
        tl.store(told + O + at, tl.sum(tl.exp(a2 - top[:, None]), 1))


@triton.jit
def norm(told, weight, O: tl.constexpr, TILES: tl.constexpr, L: tl.constexpr):
    """The norm of a matrix from the scales and sums of its tiles, at a scale where no power overflows."""
    top = tl.load(told, cache_modifier=".cg")
    for tile in tl.static_range(1, TILES):
        top = tl.maximum(top, tl.load(told + tile * 2 * O, cache_modifier=".cg"))
    powers = 0.0
    for tile in tl.static_range(0, TILES):
        scale = tl.load(told + tile * 2 * O, cache_modifier=".cg") / top
        powers += tl.load(told + tile * 2 * O + 1, cache_modifier=".cg") * power(scale, L[0])
    return tl.exp(tl.log(weight * powers + power(L[1] / top, L[0])) / L[0]) * top


@triton.jit
def link(a1, a2, told, O: tl.constexpr, TILES: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr):
    """After the meeting: accumulators as they are committed, weights, and the norms (one where there is none).

    Of a softmax, inputs that are padding have no weight, and outputs that are, from ``WIDTH`` on, even ones: nothing is kept of them.
    """
    n1, n2 = 1.0, 1.0
    if LINK == NORMALISER:
        n1, n2 = norm(told, L[2], O, TILES, L), norm(told + 2, L[3], O, TILES, L)
        w1, w2 = a1 * multiplier(n1, LINK, L), a2 * multiplier(n2, LINK, L)
    else:
        at = tl.arange(0, O)
        top = tl.load(told + at, cache_modifier=".cg")
        for tile in tl.static_range(1, TILES):
            top = tl.maximum(top, tl.load(told + tile * 2 * O + at, cache_modifier=".cg"))
        mass = tl.zeros([O], tl.float32)
        for tile in tl.static_range(0, TILES):
            scale = tl.exp(tl.load(told + tile * 2 * O + at, cache_modifier=".cg") - top)
            mass += tl.load(told + tile * 2 * O + O + at, cache_modifier=".cg") * scale
        a2 -= (top + tl.log(mass))[:, None]
        if L[2] < a1.shape[0]:
            a1 = tl.where(tl.arange(0, a1.shape[0])[:, None] < L[2], a1, NOTHING)
        top = tl.max(a1, 0)
        a1 -= (top + tl.log(tl.sum(tl.exp(a1 - top[None, :]), 0)))[None, :]
        w1, w2 = L[0] * tl.exp(a1), L[1] * tl.exp(a2)
        if WIDTH < O:
            w2 = tl.where(at[:, None] < WIDTH, w2, L[1] / L[3])
    return a1, a2, w1, w2, n1, n2


@triton.jit
def apart(w, i: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr):
    """What is kept of weights, of the first matrix (0) or the second (1)."""
    if LINK == SOFTMAX:
        w -= L[i] / L[2 + i]
    return w


@triton.jit
def whole(w, i: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr):
    """The weights of which that was kept."""
    w = w.to(tl.float32)
    if LINK == SOFTMAX:
        w += L[i] / L[2 + i]
    return w


@triton.jit
def shared(
    x, product, i: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr, CENTRED: tl.constexpr = False, WIDTH: tl.constexpr = 0
):  # fmt: skip
    """The product of rows ``x`` with weights, from that with what is kept of them.

    ``CENTRED`` rows sum to zero, but for rounding; columns from ``WIDTH`` on, if it is given, are padding.
    """
    if LINK == SOFTMAX and not CENTRED:
        alike = (L[i] / L[2 + i]) * tl.sum(x.to(tl.float32), 1)[:, None]
        if WIDTH and product.shape[1] > WIDTH:
            alike = tl.where(tl.arange(0, product.shape[1])[None, :] < WIDTH, alike, 0.0)
        product += alike
    return product


@triton.jit
def multiplier(n, LINK: tl.constexpr, L: tl.constexpr):
    """What a token's accumulator is multiplied with where it is read."""
    m = 1.0
    if LINK == NORMALISER:
        m = tl.exp((2 - L[0]) * tl.log(n))
    return m


@triton.jit
def slope(n, LINK: tl.constexpr, L: tl.constexpr):
    """How much the link magnifies a step, at least one: what bounds of steps are multiplied with."""
    s = 1.0
    if LINK == NORMALISER:
        s = tl.maximum(tl.exp(max(-1, 2 - L[0]) * tl.log(n)), 1.0)
    return s


@triton.jit
def tell_back(d1, d2, w1, w2, told, O: tl.constexpr, LINK: tl.constexpr):
    """Leaves at ``told`` this tile's part of the inner products of weights and their gradients."""
    if LINK == NORMALISER:
        tl.store(told, total(d1 * w1))
        tl.store(told + 1, total(d2 * w2))
    else:
        tl.store(told + tl.arange(0, O), tl.sum(d2 * w2, 1))


@triton.jit
def summed(told, at, O: tl.constexpr, TILES: tl.constexpr):
    """The sum of what all tiles told, in their order."""
    out = tl.load(told + at, cache_modifier=".cg")
    for tile in tl.static_range(1, TILES):
        out += tl.load(told + tile * 2 * O + at, cache_modifier=".cg")
    return out


@triton.jit
def link_vjp(
    d1, d2, w1, w2, n1, n2, d_m1, d_m2, d_s1, d_s2, told,
    O: tl.constexpr, TILES: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Gradients of the accumulators from those of weights, of multipliers and of slopes, after the meeting."""
    if LINK == NORMALISER:
        m1, m2 = multiplier(n1, LINK, L), multiplier(n2, LINK, L)
        d_n1 = norm_vjp(n1, summed(told, 0, O, TILES) / m1 + d_m1, d_s1, L) * L[2]
        d_n2 = norm_vjp(n2, summed(told, 1, O, TILES) / m2 + d_m2, d_s2, L) * L[3]
        d1, d2 = m1 * d1 + d_n1 * rise(w1 / m1, n1, L), m2 * d2 + d_n2 * rise(w2 / m2, n2, L)
    else:
        along = summed(told, tl.arange(0, O), O, TILES)
        d2 = w2 * (d2 - along[:, None] / L[1])
        d1 = w1 * (d1 - tl.sum(d1 * w1, 0)[None, :] / L[0])
    return d1, d2


@triton.jit
def norm_vjp(n, d_multiplier, d_slope, L: tl.constexpr):
    """The gradient of the norm from those of its two powers, `multiplier` and `slope`."""
    d = d_multiplier * (2 - L[0]) * tl.exp((1 - L[0]) * tl.log(n))
    s = tl.exp(max(-1, 2 - L[0]) * tl.log(n))
    return d + tl.where(s > 1.0, d_slope * max(-1, 2 - L[0]) * s / n, 0.0)


@triton.jit
def rise(a, n, L: tl.constexpr):
    """The derivative of the norm with respect to the accumulator, but for the weight of the sum."""
    return tl.where(a < 0, -1.0, 1.0) * power(tl.abs(a) / n, L[0] - 1)


@triton.jit
def unlinked(w, n, i: tl.constexpr, LINK: tl.constexpr, L: tl.constexpr):
    """The accumulator of a weight, of which `apart` was kept, of the first matrix (0) or the second (1).

    Of a softmax up to a shift, which gradients do not see but for their rounding: an even weight is zero.
    """
    if LINK == NORMALISER:
        a = w.to(tl.float32) / multiplier(n, LINK, L)
    else:
        LEAST: tl.constexpr = (
            2**-24 if w.dtype == tl.float32 else 2**-10
        )  # of an even weight, which rounding leaves nothing of
        a = tl.log(tl.maximum(1 + w.to(tl.float32) * (L[2 + i] / L[i]), LEAST))
    return a

"""What the reverse scan may do earlier or later than where it is needed, so that programs wait less for each other.

Shapes as in `miras.kernels._mlp_launch`: b batch times heads, N chunks of C, J memory and slots, I, F and O widths.
"""

import triton
import triton.language as tl


@triton.jit
def store_late(at, e, f, STACK: tl.constexpr, SLOT: tl.constexpr):
    """Gradients of a matrix and its slot, once the others need not wait until they are stored."""
    tl.store(at, e.to(at.dtype.element_ty))
    if SLOT:
        tl.store(at + STACK, f.to(at.dtype.element_ty))


@triton.jit
def fetch(pointers, COUNT: tl.constexpr):
    """Asks the L2 cache for that many numbers from every address on."""
    bytes: tl.constexpr = COUNT * pointers.dtype.element_ty.primitive_bitwidth // 8
    tl.inline_asm_elementwise(
        f"cp.async.bulk.prefetch.L2.global [$1], {bytes}; mov.b32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def fetch_ahead(
    wide, k, u2, seen2, sent,  # as of the reverse scan; every one of wide is [b, count, C, F]
    chunk, local, tile,  # the next chunk, in the sequence and among those at hand
    rr,  # tokens of which this program asks for what all tiles load
    COUNT: tl.constexpr,  # of wide that are loaded
    C: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """A request a row, because the rows of a tile are apart."""
    rc, ro, columns = tl.arange(0, C), tl.arange(0, O), tile * BF
    for i in tl.static_range(0, COUNT):
        fetch(wide[i] + local * C * F + rc * F + columns, BF)
    fetch(seen2 + local * J * F * O + ro * F + columns, BF)
    mine = tl.minimum(rr, C - 1)
    fetch(k + chunk * C * I + mine * I, I)
    fetch(u2 + local * C * O + mine * O, O)
    width: tl.constexpr = max(I, O)
    for j in tl.static_range(2 * J):
        fetch(sent + (local * 2 * J + j) * C * width + mine * width, width)

"""What a program of the perceptron's kernels has, a chunk or a tile of the hidden width, and how those with tiles meet.

A head's hidden width is cut into tiles, one program each, which hold their part of the weights for the whole sequence and
meet a few times a chunk: to add up what a product over the hidden width left in parts, each some rows, and to read all rows
of what follows from the sums. Programs number themselves in the order they start, so the tiles of a head that waits have
all started or are next: there is no deadlock.
"""

import triton
import triton.language as tl

LINE = tl.constexpr(32)  # integers of a cache line: counters of two heads do not share one


@triton.jit
def at_hand(first, count, total):
    """A chunk a program: its number in a group, and its places in whole sequences and among the chunks at hand."""
    b = (tl.program_id(0) // count).to(tl.int64)
    n = tl.program_id(0) % count
    return n, b * total + first + n, b * count + n


@triton.jit
def enter(tickets, TILES: tl.constexpr):
    """A tile a program: the head, the tile, and the counter of the head's arrivals."""
    ticket = tl.atomic_add(tickets, 1)
    b = (ticket // TILES).to(tl.int64)
    return b, ticket % TILES, tickets + (1 + b) * LINE


@triton.jit
def own_rows(tile, ROWS: tl.constexpr, C: tl.constexpr, I: tl.constexpr, O: tl.constexpr):
    """A tile's rows of what all tiles share, which of them there are, and where they lie in values and in keys."""
    rr = tile * ROWS + tl.arange(0, ROWS)
    return rr, rr < C, rr[:, None] * O + tl.arange(0, O)[None, :], rr[:, None] * I + tl.arange(0, I)[None, :]


@triton.jit
def arrive(arrivals):
    """What this program has stored may be read by those that wait."""
    tl.debug_barrier()
    tl.atomic_add(arrivals, 1, sem="release")


@triton.jit
def wait(arrivals, count):
    """Until that many programs have arrived."""
    while tl.atomic_add(arrivals, 0, sem="acquire") < count:
        pass
    tl.debug_barrier()


@triton.jit
def add_up(parts, at, stride, here, TILES: tl.constexpr):
    """The sum of what all tiles stored, in their order, where there is something."""
    total = tl.load(parts + at, mask=here, other=0.0, cache_modifier=".cg")
    for tile in tl.static_range(1, TILES):
        total += tl.load(parts + tile * stride + at, mask=here, other=0.0, cache_modifier=".cg")
    return total

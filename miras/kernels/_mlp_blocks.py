"""A chunk in blocks that share its anchor, each of which is what the kernels of the perceptron call a chunk.

Where a filter is linear, a block takes the memory from the one before it as a chunk does; only errors are those of the anchor.
The stack before every block is stored anyway, for those who read it: the anchor's weights lie ``n % BLOCKS`` blocks behind.
Their gradients come from all blocks and are gathered, in float32 and memory, until the first has been.
"""

import triton
import triton.language as tl


@triton.jit
def anchor(at1, at2, n, J: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr):
    """Weights at the anchor, from where those before block n lie."""
    behind = n % BLOCKS * (J * F)
    return tl.load(at1 - behind * I), tl.load(at2 - behind * O)


@triton.jit
def store_and_anchor(
    at1, at2, a1, a2, n, J: tl.constexpr, I: tl.constexpr, O: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr
):
    """Weights at the anchor, which may be those before block n."""
    tl.store(at1, a1)
    tl.store(at2, a2)
    tl.debug_barrier()
    return anchor(at1, at2, n, J, I, O, F, BLOCKS)


@triton.jit
def gather(at, d, e, n, BLOCKS: tl.constexpr):
    """Leaves what has been gathered for the blocks before, or adds it to a gradient where the chunk begins."""
    begins = n % BLOCKS == 0
    tl.debug_barrier()
    tl.store(at, tl.where(begins, 0.0, d))
    return tl.where(begins, e + d, e)

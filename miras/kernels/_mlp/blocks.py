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
def set_aside(at, e):
    """Leaves the gradient of a block's weights where what has been gathered of the anchor's is, which it returns."""
    gathered = tl.load(at)
    tl.debug_barrier()
    tl.store(at, e)
    return gathered


@triton.jit
def take_back(at, gathered, n, BLOCKS: tl.constexpr):
    """The gradient of a block's weights; where the chunk begins, with what has been gathered."""
    e = tl.load(at)
    begins = n % BLOCKS == 0
    tl.debug_barrier()
    tl.store(at, tl.where(begins, 0.0, gathered))
    return tl.where(begins, e + gathered, e)

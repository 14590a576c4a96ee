"""Fast biases beside both matrices of a perceptron: ``z = k W1 + b1`` and ``o = h W2 + b2``.

A bias is one more row of its matrix, whose key is always one: its errors, rates and coefficients are those of the matrix, and
what queries read of a chunk's pairs is ``(q k^T + 1) u1`` and ``(hr h^T + 1) u2``. Both of a head lie behind each other,
``[F + O]``. Every program has its tile of the first and the whole of the second, which all of them form alike.
"""

import triton
import triton.language as tl

from miras.kernels._mlp_parts import dot


@triton.jit
def shared(a, b, BIASES: tl.constexpr):
    """What keys and queries have in common, ``a b``, and one for the key of a bias."""
    x = dot(a, b)
    if BIASES:
        x += 1
    return x


@triton.jit
def load_biases(biases, rf, ro, F: tl.constexpr):
    """Some channels of the first, and the second."""
    return tl.load(biases + rf), tl.load(biases + F + ro)


@triton.jit
def store_biases(biases, b1, b2, rf, ro, tile, F: tl.constexpr):
    """This tile of the first; the first tile stores the second."""
    tl.store(biases + rf, b1)
    if tile == 0:
        tl.store(biases + F + ro, b2)

"""What a third party writes to give a bias the kernels."""

import triton
import triton.language as tl


@triton.jit
def residual(p, v, gate, constants):
    r = p - v
    return constants[0] * r / (1 + r * r)


@triton.jit
def vjp(p, v, gate, d, constants):
    r = p - v
    square = r * r
    dp = constants[0] * d * (1 - square) / ((1 + square) * (1 + square))
    return dp, -dp, tl.zeros_like(d)

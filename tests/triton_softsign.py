"""What a third party writes to give a retention the kernels."""

import triton
import triton.language as tl


@triton.jit
def link(a, constants):
    return constants[0] * a / (1 + tl.abs(a))


@triton.jit
def vjp(a, d, constants):
    return constants[0] * d / ((1 + tl.abs(a)) * (1 + tl.abs(a)))

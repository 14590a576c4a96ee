"""What a third party writes to give a retention the kernels."""

import triton
import triton.language as tl


@triton.jit
def link(a, constants):
    return constants[0] * a / (1 + tl.abs(a))


@triton.jit
def vjp(a, d, constants):
    return constants[0] * d / ((1 + tl.abs(a)) * (1 + tl.abs(a)))


@triton.jit
def steep(a, constants):
    return tl.log(a)


@triton.jit
def steep_vjp(a, d, constants):
    return d / a


@triton.jit
def damped(a, threshold, constants):
    return a / (1 + tl.maximum(threshold, 0.0) * tl.abs(a))


@triton.jit
def damped_vjp(a, threshold, d, constants):
    s = 1 + tl.maximum(threshold, 0.0) * tl.abs(a)
    return d / (s * s), tl.where(threshold > 0, -d * a * tl.abs(a) / (s * s), 0.0)

"""Gated perceptrons of three matrices, in the order of `miras.kernels._mlp`."""

"""What kernels of several families share.

`biases` and `links` as Triton functions, `blocks` for triangular systems, norms of rows (`answers`, and `rows` as an operator), and one
token without gradients (`step`).
"""

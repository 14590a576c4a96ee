"""Perceptrons of two matrices: `ops` are the operators, `launch` knows how their kernels are started.

Forward `scan` and `read`; back `read_backward`, `reverse` and `write_backward`; `cluster` starts the scans in CUDA instead.
`biases`, `gains` (with `answers`), `links` and `blocks` are what a perceptron may have besides; `parts`, `halves` and `meetings` are
what the kernels are made of.
"""

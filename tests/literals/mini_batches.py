"""Test-time training in mini-batches."""

from collections.abc import Callable

from torch import Tensor

from literals._shared import Model, Remembered, Weights, step, surprise, twice


def test_time_training(q: Tensor, k: Tensor, v: Tensor, W: Weights, lr: Tensor, M: Model, chunk: int) -> Remembered:
    """TTT (2407.04620) §2.4: mini-batches, whose gradients are all taken at the weights before them."""
    y, anchor = [], W
    for t in range(len(q)):
        if t % chunk == 0:
            anchor = W
        W = step(1.0, W, lr[t], surprise(M, anchor, k[t], v[t], twice))
        y.append(M(W, q[t]))
    return y, {"W": W}


LITERALS: dict[str, Callable[..., Remembered]] = {}

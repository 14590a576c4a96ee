"""The machine's float32 matrix rate: what a layer made of matrix products can hope for."""

from functools import partial
from typing import Any

import torch

from benchmarks import meter, process

PRODUCTS = {  # name: (batch, rows, inner, columns)
    "sgemm": (1, 2048, 2048, 2048),
    "chunk": (4, 64, 64, 256),
}


def measure(seconds: float) -> dict[str, Any]:
    """GFLOP/s of the best repeat: one large product, and the batched product of one chunk."""
    return {name: _rate(*sizes, seconds) for name, sizes in PRODUCTS.items()}


def _rate(batch: int, rows: int, inner: int, columns: int, seconds: float) -> float:
    a, b = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
    out = torch.empty(batch, rows, columns)
    best = min(meter.milliseconds(partial(torch.bmm, a, b, out=out), seconds))
    return 2e-6 * batch * rows * inner * columns / best


if __name__ == "__main__":
    process.answer(measure)

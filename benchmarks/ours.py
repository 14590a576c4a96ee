"""The layer of this package, timed as its peers are."""

from typing import Any

from torch import nn

from benchmarks import flops, layer, process
from miras import Memory

TITANS: dict[str, Any] = {"bias": "l2", "retention": "l2", "algorithm": "momentum"}


def build(shape: layer.Shape) -> Memory:
    """The memory of Titans: an MLP of depth 2 under l2 bias, l2 retention and momentum."""
    return Memory(
        shape.dim,
        heads=shape.heads,
        head_dim=shape.head_dim,
        architecture={"name": "mlp", "expansion": shape.expansion},
        chunk_size=shape.chunk,
        **TITANS,
    )


def measure(shape: dict[str, int], mode: layer.Mode, seconds: float) -> dict[str, Any]:
    sizes = layer.Shape(**shape)
    taken = layer.measure(build, sizes, mode, seconds)
    memory = build(sizes)
    projections = sum(m.weight.numel() for m in memory.modules() if isinstance(m, nn.Linear))
    return taken | {
        "counted": flops.counted(sizes, projections, mode),
        "executed": flops.executed(memory, sizes, mode),
    }


if __name__ == "__main__":
    process.answer(measure)

"""titans-pytorch's NeuralMemory; runs inside the peers' environment.

`batch_size=64` takes the gradients of every chunk at the weights of that chunk's start, as we do;
`None`, its default, takes all gradients of the sequence at the initial weights.
"""

from importlib.metadata import version
from typing import Any

from titans_pytorch import NeuralMemory  # pyright: ignore[reportMissingImports]

from benchmarks import layer, process


def measure(shape: dict[str, int], mode: layer.Mode, seconds: float, batch_size: int | None) -> dict[str, Any]:
    def build(shape: layer.Shape) -> NeuralMemory:
        return NeuralMemory(
            dim=shape.dim,
            heads=shape.heads,
            dim_head=shape.head_dim,
            chunk_size=shape.chunk,
            batch_size=batch_size,
            momentum=True,
            default_model_kwargs={"depth": 2, "expansion_factor": float(shape.expansion)},
        )

    taken = layer.measure(build, layer.Shape(**shape), mode, seconds)
    return taken | {"version": version("titans-pytorch")}


if __name__ == "__main__":
    process.answer(measure)

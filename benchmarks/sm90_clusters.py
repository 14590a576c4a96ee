"""Compiles the CUDA sources for compute capability 9.0, with no GPU, as `benchmarks.sm90` does Triton's kernels.

python -m benchmarks.sm90_clusters
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import sass
from benchmarks.sm90 import LIMIT, Resources
from miras.architectures import MLP
from miras.biases import L2, AttentionalBias, Dot
from miras.kernels import cuda
from miras.kernels._mlp import cluster, launch

STACK = 1024
"""Bytes a thread: of the reverse scan with a slot, half of them are used."""


def resources(name: str, source: cuda.Source) -> Resources:
    """Of a kernel, from its machine code."""
    import triton.backends.nvidia.compiler as nvidia

    tools = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "k.cubin")
        cubin.write_bytes(cuda.compiled(source.files, source.options))
        said = subprocess.run([tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True).stdout
        code = sass.listing(cubin)
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    products = sum("HGMMA." in text for _, text in code)
    return Resources(name, int(registers), int(stack), source.shared, products, 0, 0, len(sass.undefined(code)))


def sources(
    bias: AttentionalBias, slots: int, hidden: int, dtype: torch.dtype, norm: bool, bound: bool = False
) -> list[cuda.Source]:
    """All kernels as they would be started."""
    found: list[cuda.Source] = []

    def start(source: cuda.Source, *_: Any) -> None:
        found.append(source)

    q, rows = torch.zeros(1, 64, 64, dtype=dtype), torch.zeros(1, 1, 1 + slots, 64)
    w = torch.zeros(1, 1 + slots, 64, hidden)
    x = launch.Given(q, q, q, q, q if bound else None, rows, q, rows, q, w, w.mT, None)
    how = launch.recall(launch.key(MLP(norm=norm), bias, clusters=True))
    seen = launch.Seen.of(x)
    real, cuda.start = cuda.start, start
    try:
        cluster.scan(x, how, [w, w.mT], [None, None], seen, (0, 1, 1))
        cluster.read(x, how, seen, q, q, (0, 1, 1))
        cluster.read_backward(x, how, q, q, seen, x, [q] * 11, (0, 1, 1))
        cluster.query_backward(x, how, q, seen, [q] * 11, q, x, (0, 1, 1))
        cluster.reverse(x, how, seen, [q] * 11, [w, w], [q, q], [q] * 5, (0, 1, 1))
        cluster.write_backward(x, how, seen, [q] * 11, [q, q], q, q, x, (0, 1, 1))
    finally:
        cuda.start = real
    return found


def main() -> None:
    """Prints what every form takes, and fails where one does not fit."""
    if cuda.compiler() is None:
        sys.exit("there is no NVRTC: pip install nvidia-cuda-nvrtc")
    forms = itertools.product((1, 0), (256, 128), (True, False), (False, True))
    worst = 0
    for slots, hidden, norm, bound in forms:
        bias, dtype = (L2(), torch.bfloat16) if norm else (Dot(), torch.float16)
        for source in sources(bias, slots, hidden, dtype, norm, bound):
            name = f"{source.name} {bias.name} slots={slots} hidden={hidden} {dtype} bound={bound}".replace(
                "torch.", ""
            )
            found = resources(name, source)
            print(found, flush=True)
            worst += found.spills > STACK or found.shared > LIMIT or found.wgmma < 8 or found.undefined > 0
    sys.exit(f"{worst} do not fit" if worst else 0)


if __name__ == "__main__":
    main()

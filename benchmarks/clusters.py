"""How long the kernels of perceptrons in clusters take, and where their cycles go.

    python -m benchmarks.clusters [--tokens T ...] [--variant KERNEL=FILE ...]

Between the stages of a source, which comments and waits separate, the first thread of each group of four warps of the first program
reads the clock. What that costs is seen beside the time of the source as it is. Variants are other sources of a kernel, timed beside it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import gpu_mlp
from miras.kernels import clusters, cuda

GROUPS, ROOM, TIMES, RUNS = 2, 128, 20, 7

STAMP = f"""#define STAMP(i) \\
  if ((threadIdx.x & 127) == 0 && blockIdx.x == 0) {{ \\
    const long long now_ = clock64(); \\
    stamps[(threadIdx.x >> 7) * {ROOM} + i] += now_ - last_, last_ = now_; \\
  }}
"""

COMMENT = re.compile(r"^ +// ")
WAIT = re.compile(
    r"^ +(if \(.*\) )?(__syncthreads\(\)|group_barrier\(|wait_for\(|end\(\)|end_all_but_one\(\)|read<|publish\(\))"
)


def stamped(text: str) -> tuple[str, list[str]]:
    """A source with a clock, and the names of its stages: what a stage ends with, or the comment that the next begins with."""
    lines: list[str] = []
    names: list[str] = []
    inside = False

    def stamp(name: str) -> None:
        lines.append(f"STAMP({len(names)})")
        names.append(name.strip()[:80])

    for line in text.split("\n"):
        if inside and COMMENT.match(line):
            stamp(line)
        lines.append(line)
        if "extern __shared__" in line:
            inside = True
            lines.append("  long long last_ = clock64();")
        if inside and WAIT.match(line):
            stamp("    " + line)
    text = "\n".join(lines).replace("int total_chunks) {", "int total_chunks, long long* stamps) {")
    return STAMP + text, names


def microseconds(call: Callable[[], Any]) -> float:
    """Of a launch among many in a graph: called from Python they take longer than small kernels do."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(TIMES):
            call()
    taken: list[float] = []
    for _ in range(RUNS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        taken.append(first.elapsed_time(last) / TIMES * 1e3)
    return median(taken)


Launch = tuple[cuda.Source, torch.device, int, Sequence[cuda.Argument]]


def launches(tokens: int) -> dict[str, Launch]:
    """The first of each kernel in a forward and backward pass."""
    found: dict[str, Launch] = {}
    real = cuda.start

    def start(source: cuda.Source, device: torch.device, programs: int, arguments: Sequence[cuda.Argument]) -> None:
        found.setdefault(source.name, (source, device, programs, arguments))
        real(source, device, programs, arguments)

    _, both = gpu_mlp.core(tokens)
    both()
    cuda.start = start
    try:
        both()
    finally:
        cuda.start = real
    torch.cuda.synchronize()
    return found


def other(source: cuda.Source, file: Path) -> cuda.Source:
    """The same kernel from another file."""
    return source._replace(files=(*source.files[:-1], str(file.resolve())))


def profile(launch: Launch, variants: Sequence[Path]) -> None:
    """Prints the time of a launch, those of variants, and the cycles of its stages."""
    source, device, programs, arguments = launch

    def taken(variant: cuda.Source, *more: cuda.Argument) -> float:
        return microseconds(lambda: cuda.start(variant, device, programs, [*arguments, *more]))

    as_it_is = taken(source)
    stamps = torch.zeros(GROUPS, ROOM, dtype=torch.int64, device=device)
    with tempfile.TemporaryDirectory() as folder:
        text, names = stamped((cuda.FOLDER / source.files[-1]).read_text())
        Path(folder, "stamped.cu").write_text(text)
        own = other(source, Path(folder, "stamped.cu"))
        with_clock = taken(own, stamps)
    print(
        f"{source.name}, {programs} programs: {as_it_is:.1f} us, {with_clock:.1f} with a clock; cycles of a launch, both groups"
    )
    for *cycles, name in zip(*(stamps // (TIMES * RUNS + 1)).tolist(), names, strict=False):
        print("   ", *(f"{c:8.0f}" for c in cycles), name)
    for file in variants:
        print(f"    {taken(other(source, file)):.1f} us, {file}")


def main() -> None:
    """Profiles all kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="*", type=int, default=[4096, 32768])
    parser.add_argument("--variant", nargs="*", default=[])
    arguments = parser.parse_args()
    clusters.CROWD = 1
    variants = [text.partition("=") for text in arguments.variant]
    print(torch.cuda.get_device_name(), {n: f"{e:.1e}" for n, e in gpu_mlp.gate().items()}, flush=True)
    for tokens in arguments.tokens:
        for name, launch in launches(tokens).items():
            profile(launch, [Path(file) for kernel, _, file in variants if kernel == name])


if __name__ == "__main__":
    main()

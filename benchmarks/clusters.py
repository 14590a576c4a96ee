"""How long the kernels of perceptrons in clusters take, and where the cycles of a chunk go in their scans.

    MIRAS_UNPROVEN=1 python -m benchmarks.clusters [--tokens T ...]

Between the stages of a source, which comments and waits separate, one thread of the first program reads the clock. What that costs is seen
beside the time of the source as it is.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_mlp
from miras.kernels import clusters, cuda

STAMP = """#define STAMP(i) \\
  if (threadIdx.x == 0 && blockIdx.x == 0) { long long now_ = clock64(); stamps[i] += now_ - last_; last_ = now_; }
"""

WAIT = re.compile(r"^ +(if \(.*\) )?(__syncthreads\(\);|group_barrier\(|wait_for\(|end\(\);|end_all_but_one\(\);)")

ROOM, TIMES = 64, 20


def stamped(text: str) -> tuple[str, list[str]]:
    """The source of a scan with a clock, and the names of its stages."""
    lines: list[str] = []
    names: list[str] = []
    inside = False
    for line in text.split("\n"):
        begins = line.startswith("  for (int n")
        inside = (inside or begins) and line != "  }"
        if begins:
            lines.append("  long long last_ = clock64();")
        if inside and line.startswith("    // "):
            names.append(line.strip()[:70])
            lines.append(f"    STAMP({len(names) - 1})")
        lines.append(line)
        if inside and WAIT.match(line):
            names.append("    " + line.strip()[:70])
            lines.append(f"    STAMP({len(names) - 1})")
    text = "\n".join(lines).replace("int total_chunks) {", "int total_chunks, long long* stamps) {")
    return STAMP + text, names


def milliseconds(call: Callable[[], Any]) -> float:
    call()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(TIMES):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / TIMES


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


def profile(launch: Launch) -> None:
    """Prints the time of a launch and the cycles of its stages."""
    source, device, programs, arguments = launch
    count = arguments[-2]
    assert isinstance(count, int)
    taken = milliseconds(lambda: cuda.start(source, device, programs, arguments))
    if source.name not in ("scan", "reverse"):
        print(f"{source.name}, {programs} programs: {taken * 1e3:.1f} us")
        return
    stamps = torch.zeros(ROOM, dtype=torch.int64, device=device)
    with tempfile.TemporaryDirectory() as folder:
        text, names = stamped((cuda.FOLDER / source.files[-1]).read_text())
        Path(folder, "stamped.cu").write_text(text)
        own = source._replace(files=(*source.files[:-1], str(Path(folder, "stamped.cu"))))
        with_clock = milliseconds(lambda: cuda.start(own, device, programs, [*arguments, stamps]))
    print(
        f"{source.name}, {programs} programs, {count} chunks: {taken * 1e3:.1f} us, {with_clock * 1e3:.1f} with a clock; cycles a chunk"
    )
    for cycles, name in zip(stamps.tolist(), names, strict=False):
        print(f"    {cycles / (TIMES + 1) / count:8.0f} {name}")


def main() -> None:
    """Profiles all kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="*", type=int, default=[4096, 32768])
    arguments = parser.parse_args()
    clusters.CROWD = 1
    print(torch.cuda.get_device_name(), {n: f"{e:.1e}" for n, e in gpu_mlp.gate().items()}, flush=True)
    for tokens in arguments.tokens:
        for launch in launches(tokens).values():
            profile(launch)


if __name__ == "__main__":
    main()

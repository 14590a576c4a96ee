"""Seconds of the first forward and backward pass of a shape, with nothing compiled: `python -m benchmarks.cold [--json FILE]`.

Every row runs in a process and with caches of its own, Triton's and that of verdicts. Importing is not counted; compiling, the numerical
self-check of the kernel and the passes themselves are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report, rows

ROWS: dict[str, dict[str, Any]] = {
    "matrix, chunks": {"architecture": "matrix", "bias": "huber", "chunk_size": 64},
    "matrix, tokens": {"architecture": "matrix", "bias": "l2", "chunk_size": 1, "step_bound": None},
    "perceptron": {"architecture": "mlp", "bias": "l2", "chunk_size": 64},
}
BAR = 15.0


def first(name: str) -> dict[str, float]:
    """First and second pass of a layer, in this process."""
    import torch

    from miras import Memory

    torch.zeros(1, device="cuda")
    memory = Memory(1024, heads=16, path="kernel", **ROWS[name]).to("cuda", torch.bfloat16)
    x = torch.randn(2, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    times: list[float] = []
    for _ in range(2):
        begin = time.perf_counter()
        memory(x)[0].sum().backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return {"first": times[0], "second": times[1]}


def apart(name: str) -> dict[str, float]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.cold", "--row", name]
        empty = {"TRITON_CACHE_DIR": cache, "MIRAS_CACHE": cache}
        done = subprocess.run(command, env=os.environ | empty, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """A line for every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=ROWS, help="measure this one here, whatever is in the cache")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(first(args.row)))
        return
    found = {name: apart(name) for name in ROWS}
    for name, times in found.items():
        print(f"{name:<16} first {times['first']:6.1f} s (bar {BAR:g}), second {times['second']:.3f} s")
    if args.json:
        where = report.machine() | report.card()
        report.write(args.json, "First pass on a GPU", "python -m benchmarks.cold", where, rows.cold(found, BAR))


if __name__ == "__main__":
    main()

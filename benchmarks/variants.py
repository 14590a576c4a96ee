"""Other launch settings than the table's: `python -m benchmarks.variants perceptron|matrix --rows NAME ... [--only NAME ...]`.

Every variant must give the answers and gradients of the table's settings, and the same bits twice; then its kernels are timed one
by one, and (``--graph``) whole calls replayed from a CUDA graph. Settings that a compiler breaks show up here before they reach
the table. ``--list`` says which variants there are, ``--jobs`` fills Triton's cache with that many processes beforehand,
``--gate`` holds every variant against float64 on a piece, for those that change more than launches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import zoo
from benchmarks import gpu, gpu_cases, gpu_mlp, variants_matrix
from miras import AssociativeMemory
from miras.testing import relative

Variant = Callable[[], AbstractContextManager[Any]]
Calls = dict[str, Callable[[], Any]]
"""What is timed, by name; the last one is compared too."""


def perceptron() -> dict[str, Variant]:
    """Tiles of the hidden width, warps and stages of every kernel."""
    from miras.kernels._mlp import launch

    def changed(kernel: str, how: dict[str, int]) -> Variant:
        launches = {kernel: launch.LAUNCH[kernel] | how}
        none = {kernel: {width: {} for width in (16, 32, 64)}} if kernel in launch.SHORT else {}
        return variants_matrix.both(
            lambda: mock.patch.dict(launch.LAUNCH, launches),
            lambda: mock.patch.dict(launch.NARROW, {kernel: {}}),
            lambda: mock.patch.dict(launch.SHORT, none),
        )

    found: dict[str, Variant] = {}
    for kernel, tile, warps, stages in product(launch.LAUNCH, (32, 64), (4, 8), (1, 2, 3)):
        if stages == 1 or kernel not in ("scan", "reverse"):  # whose tiles wait for each other
            how = {"BF": tile, "num_warps": warps, "num_stages": stages}
            found[f"{kernel} {tile} {warps} {stages}"] = changed(kernel, how)
    found |= {f"{kernel} 16": changed(kernel, {"BF": 16}) for kernel in ("scan", "reverse")}
    for kernel, tile, most in product(("scan", "reverse"), (32, 64), (128, 168)):  # of which more run at once
        found[f"{kernel} thin {tile} {most}"] = changed(kernel, {"BF": tile, "maxnreg": most})
    found |= {f"few {n}": lambda n=n: mock.patch.multiple(launch, PROGRAMS=n, MOST=n) for n in (512, 1024, 2048)}
    found["four warps"] = changed("read_backward", {"num_warps": 4})
    return found


PERCEPTRONS = {
    "momentum": (4, gpu_mlp.SPEC),
    "yaad": (8, zoo.spec("yaad", form="recommended", chunk_size=16)),
    "yaad, few": (1, zoo.spec("yaad", form="recommended", chunk_size=16)),
    "moneta": (8, zoo.spec("moneta", chunk_size=16)),
}
"""Rows of a batch and the memory, T4096 H16 D64: that of `benchmarks.gpu_mlp`, and those in chunks of 16 as models have them."""


def perceptron_case(row: str) -> Calls:
    """One of `PERCEPTRONS`."""
    batch, spec = PERCEPTRONS[row]
    qkv, gates, state = gpu_mlp.operands(batch, 4096, 16, 64, spec)
    q, k, v, *rest = leaves = [x.requires_grad_() for x in (*qkv, *gates.values())]
    memory = AssociativeMemory(spec, "kernel")
    weight = torch.randn(v.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def call() -> list[Tensor]:
        y, _ = memory(q, k, v, dict(zip(gates, rest, strict=True)), state)
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]

    return {"both": call}


def matrix_case(row: str, gated: bool = False) -> Calls:
    """Our side of a row of `benchmarks.gpu`."""
    [found] = [r for r in gpu.ROWS if r.name == row]
    with nullcontext() if gated else mock.patch.object(gpu_cases, "gate", lambda *_: None):
        case = found.ours(found.shape)
    y = case.forward()
    # not the same along channels, of which a norm would leave nothing but rounding
    weight = torch.empty_like(y).normal_(generator=torch.Generator(y.device).manual_seed(1))

    def both() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(case.call(*case.leaves), case.leaves, weight, allow_unused=True)

    return {"forward": case.forward, "both": both}


def answers(calls: Calls) -> list[Tensor]:
    """Everything that a call gives, outputs and gradients."""
    found = [call() for call in calls.values()]
    return [x for y in found for x in ([y] if isinstance(y, Tensor) else y) if x is not None]


def times(call: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Milliseconds of every kernel in one call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found = {e.key.split("(")[0][-40:]: e.device_time_total / 1e3 / repeats for e in profile.key_averages()}
    return {n: t for n, t in sorted(found.items(), key=lambda item: -item[1]) if t > 0.005}


def report(name: str, calls: Calls, wanted: Sequence[Tensor], graph: bool) -> str:
    """A line: what differs, whole calls from a graph, kernels one by one."""
    got, again = answers(calls), answers(calls)
    worst = max(relative(a, b) for a, b in zip(got, wanted, strict=True))
    bits = "same" if all(torch.equal(a, b) for a, b in zip(got, again, strict=True)) else "OTHER"
    whole = "  ".join(f"{n} {gpu.replayed(call)[0]:.3f}" for n, call in calls.items()) if graph else ""
    found = times(list(calls.values())[-1])
    split = "  ".join(f"{n} {t:.3f}" for n, t in found.items())
    return f"{name:<24} {whole}  kernels {sum(found.values()):.3f} ms, differs by {worst:.1e}, {bits} bits: {split}"


def compare(what: str, row: str, args: argparse.Namespace) -> None:
    """A line for every variant of one row."""
    calls = perceptron_case(row) if what == "perceptron" else matrix_case(row)
    variants = perceptron() if what == "perceptron" else variants_matrix.found(lambda: answers(calls))
    unknown = [n for n in args.also if n not in variants]
    if unknown:
        raise SystemExit(f"no variants {unknown} of {row}")
    also = variants_matrix.both(*(variants[n] for n in args.also))
    first, of = args.part
    names = [n for n in variants if not args.only or n.startswith(tuple(args.only))][first::of]
    print(f"== {row}: {len(names)} variants", flush=True)
    if args.list:
        print(*names, sep="\n", flush=True)
        return
    wanted = [x.clone() for x in answers(calls)]
    if args.jobs:
        _compile(what, row, args)
    for name in names if args.compile else ("table", *names):
        try:
            with also(), nullcontext() if name == "table" else variants[name]():
                if args.gate and what == "matrix":
                    matrix_case(row, True)
                if args.compile:
                    answers(calls)
                else:
                    print(report(name, calls, wanted, args.graph), flush=True)
        except Exception as error:  # one that does not compile; after an illegal access nothing else runs either
            print(f"{name:<24} {type(error).__name__}: {str(error)[:160]!r}", flush=True)
            if "CUDA" in str(error):
                raise SystemExit(1) from error


def _compile(what: str, row: str, args: argparse.Namespace) -> None:
    """All variants in several processes, so that this one finds them compiled."""
    same = ["--rows", row, *(("--only", *args.only) if args.only else ())]
    same += ["--also", *args.also] if args.also else []
    command = [
        sys.executable,
        "-m",
        "benchmarks.variants",
        what,
        *same,
        "--compile",
        *(["--gate"] * args.gate),
        "--part",
    ]
    each = [subprocess.Popen([*command, str(i), str(args.jobs)], stdout=subprocess.DEVNULL) for i in range(args.jobs)]
    for job in each:
        job.wait()


def main() -> None:
    """Prints a line for every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("perceptron", "matrix"))
    parser.add_argument(
        "--rows", nargs="+", required=True, help=f"of benchmarks.gpu, for a matrix, else {[*PERCEPTRONS]}"
    )
    parser.add_argument("--only", nargs="+", default=[], help="variants whose names begin so")
    parser.add_argument("--also", nargs="+", default=[], help="variants that are on throughout")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("FIRST", "OF"), default=(0, 1), help="every OF-th variant"
    )
    parser.add_argument("--graph", action="store_true", help="whole calls from a CUDA graph too")
    parser.add_argument("--gate", action="store_true", help="every variant against float64 first")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--compile", action="store_true", help="only fill Triton's cache")
    args = parser.parse_args()
    for row in args.rows:
        compare(args.what, row, args)


if __name__ == "__main__":
    main()

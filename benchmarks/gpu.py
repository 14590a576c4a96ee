"""Kernels against other packages' on one GPU: a registry of rows, each gated by correctness, medians with their spread.

    python -m benchmarks.gpu [--rows NAME ...] [--json benchmarks/results/gpu.json] [--breakdown]

Every row times a function of the same tensors (bfloat16 operands, gates already computed) twice: called from Python, and
replayed from a CUDA graph, which leaves out what Python costs. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path as File
from typing import Any

import torch

from benchmarks import report, rows
from benchmarks.gpu_cases import (
    TTT,
    Case,
    Shape,
    attention,
    fla_delta_rule,
    fla_gated_delta_rule,
    fla_gla,
    fla_kda,
    fla_ttt_linear,
    ours,
    whole,
)

DECAYED = {"name": "l2", "gradient_at": "decayed"}

BY_KEY = {"name": "l2", "per": "key"}

HUBER: dict[str, Any] = dict(bias="huber", algorithm="momentum", chunk_size=64)
FREE: dict[str, Any] = HUBER | {"step_bound": None}
L2: dict[str, Any] = dict(bias="l2", algorithm="momentum", chunk_size=64, step_bound=None)
DELTA: dict[str, Any] = dict(bias="l2", algorithm="gd", retention=DECAYED, chunk_size=1, step_bound=None)
KDA: dict[str, Any] = DELTA | {"retention": DECAYED | BY_KEY}
LONG = Shape(1, 65536, 8, 128)
GDN = Shape(4, 4096, 16, 128)


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    shape: Shape
    ours: Callable[[Shape], Case]
    peer: Callable[[Shape], Case] | None = None
    peer_name: str = ""
    bars: tuple[float, float] | None = None  # times faster: forward, forward and backward


ROWS = [
    Row("huber momentum", GDN, ours(**FREE), fla_gated_delta_rule, "fla gated delta rule", (3, 1.5)),
    Row("huber momentum bounded", GDN, ours(**HUBER), fla_gated_delta_rule, "fla gated delta rule"),
    Row("exact delta", GDN, ours(**DELTA), fla_gated_delta_rule, "fla gated delta rule", (0, 1.2)),
    Row(
        "exact delta momentum",
        GDN,
        ours(bias="l2", algorithm="momentum", chunk_size=1, step_bound=None),
        fla_gated_delta_rule,
        "fla gated delta rule",
        (0, 0.8),
    ),
    Row(
        "delta rule",
        Shape(4, 4096, 16, 64),
        ours(bias="l2", algorithm="gd", retention="none", chunk_size=1, step_bound=None),
        fla_delta_rule,
        "fla delta rule",
        (0, 1.3),
    ),
    *(
        Row(
            f"attention {t}", Shape(b, t, 16, 64), ours(**FREE), attention, "SDPA causal", (0, 1) if t >= 8192 else None
        )
        for b, t in ((4, 4096), (2, 8192), (1, 32768))
    ),
    *(
        Row(
            f"TTT-Linear {c}",
            Shape(4, 4096, 16, 64),
            ours(rate=0.02, chunk_size=c, **TTT),
            fla_ttt_linear(c),
            f"fla TTT-Linear {c}",
            (0, bar),
        )
        for c, bar in ((16, 2), (64, 1.5))
    ),
    Row("KDA", GDN, ours(**KDA), fla_kda, "fla KDA"),
    Row("GLA", GDN, ours(bias="dot", algorithm="gd", retention=BY_KEY, chunk_size=64), fla_gla, "fla GLA"),
    Row("one long sequence", LONG, ours(tokens=4096, **L2), whole(ours(**L2)), "unsplit", (2, 0)),
    Row("one long sequence, exact", LONG, ours(tokens=4096, **DELTA), fla_gated_delta_rule, "fla gated delta rule"),
]


@dataclass
class Result:
    """Milliseconds (median, 20%, 80%), MiB, and the shape of a row's two sides."""

    row: str
    side: str
    shape: str
    times: dict[str, list[float]] = field(default_factory=dict)
    peak_mib: float = 0.0
    error: str = ""


def timed(call: Callable[[], Any]) -> list[float]:
    do_bench: Any = import_module("triton.testing").do_bench
    return do_bench(call, warmup=25, rep=100, quantiles=[0.5, 0.2, 0.8])


def replayed(call: Callable[[], Any]) -> list[float]:
    """The same from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return timed(graph.replay)


def measure(row: str, side: str, shape: Shape, build: Callable[[Shape], Case]) -> Result:
    """One side of a row."""
    result = Result(row, side, str(shape))
    try:
        case = build(shape)
        for name, call in (("forward", case.forward), ("both", case.both)):
            for _ in range(3):
                call()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            result.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
            result.times[name] = timed(call)
            try:
                result.times[f"{name} graph"] = replayed(call)
            except RuntimeError as error:
                result.error = f"{name} graph: {error}".splitlines()[0][:120]
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"[:400]
    torch.cuda.empty_cache()
    return result


def breakdown(build: Callable[[Shape], Case], shape: Shape) -> list[str]:
    """Milliseconds of every kernel of one forward and backward pass."""
    case = build(shape)
    for _ in range(3):
        case.both()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        case.both()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)
    return [
        f"{e.device_time_total / 1e3:8.3f} ms {e.count:>3} x {e.key[:90]}"
        for e in events[:16]
        if e.device_time_total > 5
    ]


def main() -> None:
    """Runs rows and prints a line for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*")
    parser.add_argument("--json", type=File)
    parser.add_argument("--breakdown", action="store_true")
    parser.add_argument("--compile", action="store_true", help="only run every side once, to fill Triton's cache")
    arguments = parser.parse_args()
    packages = {p: version(p) for p in ("torch", "triton")}
    print(torch.cuda.get_device_name(), packages, flush=True)
    results: list[Result] = []
    for row in ROWS:
        if arguments.rows and row.name not in arguments.rows:
            continue
        sides = [("ours", row.ours), *([(row.peer_name, row.peer)] if row.peer else [])]
        if arguments.compile:
            for _, build in sides:
                build(row.shape).both()
            continue
        for side, build in sides:
            found = measure(row.name, side, row.shape, build)
            results.append(found)
            times = "  ".join(f"{n} {t[0]:.3f} [{t[1]:.3f} {t[2]:.3f}]" for n, t in found.times.items())
            print(
                f"{row.name:<24} {row.shape!s:<22} {side:<22} {times}  {found.peak_mib:.0f} MiB {found.error}",
                flush=True,
            )
        if arguments.breakdown:
            print(*breakdown(row.ours, row.shape), sep="\n", flush=True)
        if arguments.json:
            found = rows.gpu([asdict(r) for r in results], {r.name: r.bars for r in ROWS})
            where = report.machine() | report.card() | packages
            wrong = "; ".join(f"{r.row}, {r.side}: {r.error}" for r in results if r.error)
            report.write(arguments.json, "Matrix memories on a GPU", "python -m benchmarks.gpu", where, found, wrong)


if __name__ == "__main__":
    main()

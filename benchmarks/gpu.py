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
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report, rows
from miras import AssociativeMemory, MirasSpec
from miras.engine.plan import Path
from miras.testing import TOLERANCE, relative

DECAYED = {"name": "l2", "gradient_at": "decayed"}


@dataclass(frozen=True)
class Shape:
    """Batch, tokens, heads and width of a head."""

    B: int
    T: int
    H: int
    D: int

    def __str__(self) -> str:
        return f"B{self.B} T{self.T} H{self.H} D{self.D}"


class Case:
    """What is timed: a function of leaves that require gradients."""

    def __init__(self, call: Callable[..., Tensor], leaves: list[Tensor]):
        self.call, self.leaves = call, [x.detach().requires_grad_() for x in leaves]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        y = self.call(*self.leaves)
        return torch.autograd.grad(y, self.leaves, torch.ones_like(y), allow_unused=True)


def operands(s: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Unit queries and keys, standard normal values, gates as a trained model has them."""
    g = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=g)

    q, k = (F.normalize(normal(s.B, s.T, s.H, s.D), dim=-1).bfloat16() for _ in range(2))
    gate = (s.B, s.T, s.H)
    return {
        "q": q,
        "k": k,
        "v": normal(s.B, s.T, s.H, s.D).bfloat16(),
        "lr": 0.1 * torch.sigmoid(normal(*gate)),
        "log_decay": F.logsigmoid(normal(*gate) + 4),
        "log_momentum": F.logsigmoid(normal(*gate)),
        "delta": 2 + F.softplus(normal(*gate)),  # rare kinks, at which no rounded prediction has the right derivative
    }


def ours(path: Path = "kernel", tokens: int = 200, **fields: Any) -> Callable[[Shape], Case]:
    """A memory of one matrix a head, from zero; as many tokens are compared before it is timed."""
    spec = MirasSpec.make(architecture="matrix", **fields)

    def build(s: Shape) -> Case:
        x = operands(s)
        names = list(spec.gates)
        memory = AssociativeMemory(spec, path)
        gate(spec, x, tokens)

        def call(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
            return memory(q, k, v, dict(zip(names, gates, strict=True)))[0]

        return Case(call, [x["q"], x["k"], x["v"], *(x[n] for n in names)])

    return build


def whole(build: Callable[[Shape], Case]) -> Callable[[Shape], Case]:
    """The same without splitting a sequence into segments."""

    def built(s: Shape) -> Case:
        case = build(s)

        def call(*leaves: Tensor) -> Tensor:
            segments: Any = import_module("miras.kernels._split")
            most, segments.MOST = segments.MOST, 1
            try:
                return case.call(*leaves)
            finally:
                segments.MOST = most

        return Case(call, case.leaves)

    return built


def gate(spec: MirasSpec, x: dict[str, Tensor], tokens: int) -> None:
    """No number without correctness: the kernel against a PyTorch path in float64, outputs and gradients, on a piece."""

    def go(path: Any, dtype: torch.dtype) -> list[Tensor]:
        cut = {
            n: t[:1, :tokens, :2].to(dtype if n in "qkv" else torch.promote_types(dtype, torch.float32))
            for n, t in x.items()
        }
        q, k, v, *rest = leaves = [cut[n].detach().requires_grad_() for n in ("q", "k", "v", *spec.gates)]
        y = AssociativeMemory(spec, path)(q, k, v, dict(zip(spec.gates, rest, strict=True)))[0]
        weight = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float64).view_as(y)
        return [y, *torch.autograd.grad((y.double() * weight).sum(), leaves)]

    slow = next(p for p in ("exact", "factored") if p not in AssociativeMemory(spec).plan(16, 16).refused)
    errors = [
        relative(a.double(), b) for a, b in zip(go("kernel", torch.bfloat16), go(slow, torch.float64), strict=True)
    ]
    limit = TOLERANCE["kernel"][torch.bfloat16]
    assert all(e <= limit for e in errors), f"{spec}: relative errors {errors} exceed {limit}"


def fla_gated_delta_rule(s: Shape) -> Case:
    chunk_gated_delta_rule: Any = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    if s.D == 128:  # where the miscompiled tile is not used
        setattr(import_module("fla.ops.common.chunk_o"), "TRITON_ABOVE_3_7_1", True)  # noqa: B010
    x = operands(s)
    return Case(
        lambda q, k, v, g, beta: chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0)[0],
        [x["q"], x["k"], x["v"], x["log_decay"], x["lr"]],
    )


def fla_delta_rule(s: Shape) -> Case:
    chunk_delta_rule: Any = import_module("fla.ops.delta_rule").chunk_delta_rule
    x = operands(s)
    beta = x["lr"].bfloat16()
    return Case(lambda q, k, v, b: chunk_delta_rule(q, k, v, b, scale=1.0)[0], [x["q"], x["k"], x["v"], beta])


def attention(s: Shape) -> Case:
    x = operands(s)
    q, k, v = (x[n].transpose(1, 2) for n in "qkv")
    return Case(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v])


HUBER: dict[str, Any] = dict(bias="huber", algorithm="momentum", chunk_size=64)
FREE: dict[str, Any] = HUBER | {"step_bound": None}
L2: dict[str, Any] = dict(bias="l2", algorithm="momentum", chunk_size=64, step_bound=None)
DELTA: dict[str, Any] = dict(bias="l2", algorithm="gd", retention=DECAYED, chunk_size=1, step_bound=None)
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
            where = report.machine() | {"device": torch.cuda.get_device_name()} | packages
            wrong = "; ".join(f"{r.row}, {r.side}: {r.error}" for r in results if r.error)
            report.write(arguments.json, "Matrix memories on a GPU", "python -m benchmarks.gpu", where, found, wrong)


if __name__ == "__main__":
    main()

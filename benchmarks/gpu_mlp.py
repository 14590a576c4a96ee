"""The perceptron memory on one GPU: the whole layer against titans-pytorch, and the memory against attention as T grows.

    python -m benchmarks.gpu_mlp [--tokens T ...] [--json benchmarks/results/gpu_mlp.json] [--breakdown]

The layer is that of `benchmarks.ours`, without a step bound, which the peer has not. Nothing is timed before the kernels
agree with the PyTorch path in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from benchmarks import layer, ours, report
from benchmarks import rows as forms
from benchmarks.gpu import replayed, timed
from miras import AssociativeMemory, Memory, MirasSpec
from miras.state import MemoryState
from miras.testing import TOLERANCE, RoundedProducts, relative

SPEC = MirasSpec.make(architecture="mlp", chunk_size=64, step_bound=None, **ours.TITANS)
SHAPE = layer.Shape(batch=4, length=4096, dim=1024, heads=16)
PEAK = 798e12
"""Operations a second of a large bfloat16 product on the card (measured)."""


PRESETS = {
    "yaad": zoo.spec("yaad", chunk_size=64),
    "moneta": zoo.spec("moneta", chunk_size=64),
    "memora at the anchor": zoo.spec("memora", form="recommended", chunk_size=64, anchor_lag=0, read="anchor"),
}
"""Those of the zoo that one link a chunk computes, in chunks of 64."""


def operands(
    batch: int, length: int, heads: int, width: int, spec: MirasSpec = SPEC
) -> tuple[list[Tensor], dict[str, Tensor], MemoryState]:
    """Unit queries and keys, normal values, gates of a trained model at a stable rate, and a random start."""
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=g)

    sizes = (batch, length, heads)
    q, k = (F.normalize(normal(*sizes, width), dim=-1).bfloat16() for _ in range(2))
    gates = {
        "lr": 1e-3 * torch.sigmoid(normal(*sizes)),
        "log_decay": F.logsigmoid(normal(*sizes) + 4),
        "log_momentum": F.logsigmoid(normal(*sizes)),
        "delta": 0.5 + torch.sigmoid(normal(*sizes)),  # errors are about the root of the width: far from the kink
        "gamma": torch.sigmoid(normal(*sizes)),
        "threshold": 1e-4 * torch.sigmoid(normal(*sizes)),
    }
    gates = {n: g for n, g in gates.items() if n in spec.gates}
    memory = AssociativeMemory(spec, "kernel")
    raw = memory.random_memory(heads, width, width, torch.Generator().manual_seed(0))
    raw = {n: w.cuda() for n, w in raw.items()}
    return [q, k, normal(*sizes, width).bfloat16()], gates, memory.initial_state(raw, batch, width, width)


def gate(spec: MirasSpec = SPEC) -> dict[str, float]:
    """The kernels' error against float64, outputs and gradients, on a piece.

    It is within the tolerance, or within twice what rounding the operands of PyTorch's products costs.
    """

    def go(path: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        qkv, gates, state = operands(2, 256, 16, 64, spec)  # heads enough for clusters
        wide = torch.promote_types(dtype, torch.float32)
        leaves = [x.to(dtype).requires_grad_() for x in qkv] + [x.to(wide).requires_grad_() for x in gates.values()]
        q, k, v, *given = leaves
        start = state.map(lambda x: x.to(wide))
        y, _ = AssociativeMemory(spec, path)(q, k, v, dict(zip(gates, given, strict=True)), start)
        g = torch.Generator("cuda").manual_seed(1)
        weight = torch.randn(y.shape, device=y.device, generator=g).bfloat16().double()
        grads = torch.autograd.grad((y.double() * weight).sum(), leaves)
        return dict(zip(("y", "q", "k", "v", *gates), (y, *grads), strict=True))

    got, wanted = go("kernel", torch.bfloat16), go(None if spec is not SPEC else "fused", torch.float64)
    with RoundedProducts(torch.bfloat16):
        rounded = go("factored", torch.float64)
    errors = {n: relative(got[n].double(), wanted[n]) for n in wanted}
    limits = {n: max(TOLERANCE["kernel"][torch.bfloat16], 2 * relative(rounded[n], wanted[n])) for n in wanted}
    assert all(errors[n] <= limits[n] for n in wanted), (errors, limits)
    return errors


def titans(batch_size: int | None) -> nn.Module:
    from titans_pytorch import NeuralMemory  # pyright: ignore[reportMissingImports]

    return NeuralMemory(
        dim=SHAPE.dim,
        heads=SHAPE.heads,
        dim_head=SHAPE.head_dim,
        chunk_size=SHAPE.chunk,
        batch_size=batch_size,
        momentum=True,
        default_model_kwargs={"depth": 2, "expansion_factor": float(SHAPE.expansion)},
    )


def our_layer() -> Memory:
    architecture = {"name": "mlp", "expansion": SHAPE.expansion}
    return Memory(
        SHAPE.dim,
        heads=SHAPE.heads,
        head_dim=SHAPE.head_dim,
        architecture=architecture,
        chunk_size=SHAPE.chunk,
        step_bound=None,
        path="kernel",
        **ours.TITANS,
    )


def whole_layer(build: Callable[[], nn.Module], dtype: torch.dtype) -> Callable[[], tuple[Any, Any]]:
    """Forward, and forward and backward to input and parameters."""

    def cases() -> tuple[Any, Any]:
        torch.manual_seed(0)
        module = build().to("cuda", dtype)
        x = torch.randn(SHAPE.batch, SHAPE.length, SHAPE.dim, device="cuda", dtype=dtype)
        return lambda: layer.forward(module, x), lambda: layer.train(module, x)

    return cases


def core(length: int, spec: MirasSpec = SPEC) -> tuple[Any, Any]:
    """The memory on its own: queries, keys and values in, answers out."""
    batch = max(1, 16384 // length)
    qkv, gates, state = operands(batch, length, 16, 64, spec)
    leaves = [x.requires_grad_() for x in (*qkv, *gates.values())]
    memory = AssociativeMemory(spec, "kernel")

    def forward() -> Tensor:
        q, k, v, *given = leaves
        return memory(q, k, v, dict(zip(gates, given, strict=True)), state)[0]

    return torch.no_grad()(forward), lambda: torch.autograd.grad(forward().sum(), leaves)


def attention(length: int) -> tuple[Any, Any]:
    qkv, _, _ = operands(max(1, 16384 // length), length, 16, 64)
    q, k, v = leaves = [x.transpose(1, 2).contiguous().requires_grad_() for x in qkv]

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return torch.no_grad()(forward), lambda: torch.autograd.grad(forward().sum(), leaves)


def operations(tokens: int, width: int = 64, expansion: int = 4, chunk: int = 64) -> tuple[float, float]:
    """Of the memory's products for all tokens of all heads: forward, forward and backward with one forward again."""
    d, hidden = width, width * expansion
    forward = 22 * d * hidden + 4 * chunk * (d + hidden) + 2 * chunk * chunk
    return tokens * forward, tokens * (88 * d * hidden + 16 * chunk * (d + hidden) + 8 * chunk * chunk)


def measure(name: str, cases: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    """Medians with their quintiles in milliseconds, called and replayed from a CUDA graph, and GiB beyond what was allocated before."""
    found: dict[str, Any] = {"row": name}
    try:
        calls = dict(zip(("forward", "both"), cases(), strict=True))
        for mode, call in calls.items():
            call()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            found[f"{mode} GiB"] = (torch.cuda.max_memory_allocated() - before) / 2**30
            found[mode] = timed(call)
        for mode, call in calls.items():
            found[f"{mode} graph"] = replayed(call)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:300]
    torch.cuda.empty_cache()
    print(" ".join(f"{n} {_shown(x)}" for n, x in found.items()), flush=True)
    return found


def _shown(x: Any) -> str:
    if isinstance(x, list):
        return "[" + " ".join(f"{t:.3f}" for t in x) + "]"
    return f"{x:.2f}" if isinstance(x, float) else x


def breakdown(call: Callable[[], Any]) -> None:
    """Milliseconds of every kernel of one call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    for e in sorted(profile.key_averages(), key=lambda e: -e.device_time_total)[:20]:
        print(f"    {e.device_time_total / 1e3:8.3f} ms {e.count:>3} x {e.key[:80]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="*", type=int, default=[4096, 8192, 16384, 32768, 65536, 131072])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--breakdown", action="store_true")
    arguments = parser.parse_args()
    errors = {n: f"{e:.1e}" for n, e in gate().items()}
    print(torch.cuda.get_device_name(), torch.__version__, "errors", errors, flush=True)
    rows = [measure("layer ours bfloat16", whole_layer(our_layer, torch.bfloat16))]
    if arguments.breakdown:
        breakdown(whole_layer(our_layer, torch.bfloat16)()[1])
    for name, spec in PRESETS.items():

        def cases(spec: MirasSpec = spec) -> tuple[Any, Any]:
            print("   ", "errors", {n: f"{e:.1e}" for n, e in gate(spec).items()}, flush=True)
            return core(4096, spec)

        rows.append(measure(f"preset {name}", cases))
    for t in arguments.tokens:
        rows.append(measure(f"memory T={t}", lambda t=t: core(t)))
        rows.append(measure(f"attention T={t}", lambda t=t: attention(t)))
        if "both graph" in rows[-2]:
            work = operations(max(1, 16384 // t) * t * 16)
            modes = zip(work, ("forward graph", "both graph"), strict=True)
            share = [f"{w / PEAK / rows[-2][m][0] * 1e5:.1f}%" for w, m in modes]
            print("    of the card's bfloat16 rate, forward and both:", *share, flush=True)
    rows += [  # last: what a recording that fails leaves behind is not ours to know
        measure("layer titans-pytorch float32", whole_layer(lambda: titans(None), torch.float32)),
        measure("layer titans-pytorch bfloat16", whole_layer(lambda: titans(None), torch.bfloat16)),
    ]
    if arguments.json:
        where = report.machine() | report.card()
        shape = f"B{SHAPE.batch} T{SHAPE.length} H{SHAPE.heads} D{SHAPE.head_dim}"
        wrong = "; ".join(f"{row['row']}: {row['error']}" for row in rows if "error" in row)
        found, command = forms.gpu_mlp(rows, shape), "python -m benchmarks.gpu_mlp"
        report.write(arguments.json, "Perceptron memories on a GPU", command, where, found, wrong)


if __name__ == "__main__":
    main()

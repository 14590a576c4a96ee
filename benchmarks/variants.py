"""Other launch settings than the table's: `python -m benchmarks.variants perceptron|matrix [--row NAME] [--only NAME ...]`.

Every variant must give the answers and gradients of the table's settings, and the same bits twice; then its kernels are timed one
by one. Settings that a compiler breaks show up here before they reach the table. ``--compile`` only fills Triton's cache,
``--variants 0 8`` takes some of them, so that several processes can share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import gpu, gpu_cases, gpu_mlp
from miras import AssociativeMemory
from miras.testing import relative

CONFIGS = [
    (64, 4, 1),
    (64, 4, 2),
    (64, 8, 1),
    (64, 8, 2),
    (64, 8, 3),
    (128, 4, 1),
    (128, 8, 1),
    (128, 8, 2),
    (32, 4, 2),
]
"""Value channels of a program, warps, and stages."""

SWITCHES = (("BACK",), ("LATER",), ("AHEAD",), ("BACK", "LATER"), ("BACK", "AHEAD"), ("BACK", "LATER", "AHEAD"))
"""What the reverse scan of the perceptron may do, see `miras.kernels._mlp_ahead`."""

Variant = Callable[[], Any]


def matrix() -> dict[str, Variant]:
    """Every kernel with other settings."""
    from miras.kernels import _launches

    before = _launches.config

    def changed(which: str, how: tuple[int, int, int]) -> Variant:
        def config(x: Any, rowwise: bool, kernel: str) -> Any:
            return _launches.Config(*how) if kernel == which else before(x, rowwise, kernel)

        return lambda: mock.patch.object(_launches, "config", config)

    kernels = ("scan", "reverse", "readers", "writers")
    return {f"{k} {' '.join(map(str, how))}": changed(k, how) for k in kernels for how in CONFIGS}


def perceptron() -> dict[str, Variant]:
    """Tiles of the hidden width, warps and stages of every kernel."""
    from miras.kernels import _mlp_launch

    def changed(kernel: str, how: dict[str, int]) -> Variant:
        return lambda: mock.patch.dict(_mlp_launch.LAUNCH, {kernel: _mlp_launch.LAUNCH[kernel] | how})

    found: dict[str, Variant] = {}
    for kernel, tile, warps, stages in product(_mlp_launch.LAUNCH, (32, 64), (4, 8), (1, 2, 3)):
        if stages == 1 or kernel not in ("scan", "reverse"):  # whose tiles wait for each other
            how = {"BF": tile, "num_warps": warps, "num_stages": stages}
            found[f"{kernel} {tile} {warps} {stages}"] = changed(kernel, how)
    for tile, warps, on in product((32, 64), (4, 8), SWITCHES):
        how = {"BF": tile, "num_warps": warps, **dict.fromkeys(on, True)}
        found[f"reverse {tile} {warps} {' '.join(on)}"] = changed("reverse", how)
    found["reverse 16 BACK"] = changed("reverse", {"BF": 16, "BACK": True})
    for tile, on in ((16, ()), (16, ("AHEAD",)), (32, ("AHEAD",))):
        found[" ".join(("scan", str(tile), *on))] = changed("scan", {"BF": tile, **dict.fromkeys(on, True)})
    found["kept none"] = lambda: mock.patch.object(_mlp_launch, "KEPT", 0)
    found["kept last"] = lambda: mock.patch.object(_mlp_launch, "KEPT", 1000)
    found["kept all"] = lambda: mock.patch.object(_mlp_launch, "PROGRAMS", 1 << 20)
    return found


def perceptron_case() -> Callable[[], list[Tensor]]:
    """The memory of `benchmarks.gpu_mlp`, B4 T4096 H16 D64."""
    qkv, gates, state = gpu_mlp.operands(4, 4096, 16, 64)
    q, k, v, *rest = leaves = [x.requires_grad_() for x in (*qkv, *gates.values())]
    memory = AssociativeMemory(gpu_mlp.SPEC, "kernel")
    weight = torch.randn(v.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def call() -> list[Tensor]:
        y, _ = memory(q, k, v, dict(zip(gates, rest, strict=True)), state)
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]

    return call


def matrix_case(row: str) -> Callable[[], list[Tensor]]:
    """Our side of a row of `benchmarks.gpu`."""
    [found] = [r for r in gpu.ROWS if r.name == row]
    with mock.patch.object(gpu_cases, "gate", lambda *_: None):  # it is the variants that are compared here
        case = found.ours(found.shape)
    return lambda: [case.forward(), *(g for g in case.both() if g is not None)]


def times(call: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Milliseconds of every kernel in one call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found = {e.key.split("(")[0]: e.device_time_total / 1e3 / repeats for e in profile.key_averages()}
    return {n: t for n, t in sorted(found.items(), key=lambda item: -item[1]) if t > 0.02}


def main() -> None:
    """Prints a line for every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("perceptron", "matrix"))
    parser.add_argument("--row", default="huber momentum", help="of benchmarks.gpu, for a matrix")
    parser.add_argument("--only", default="", help="variants whose name begins so")
    parser.add_argument("--variants", type=int, nargs=2, metavar=("FIRST", "STOP"), default=(0, 1000))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    variants = perceptron() if args.what == "perceptron" else matrix()
    names = [n for n in variants if n.startswith(args.only)][slice(*args.variants)]
    call = perceptron_case() if args.what == "perceptron" else matrix_case(args.row)
    wanted = [x.clone() for x in call()]
    for name in ("table", *names):
        try:
            with nullcontext() if name == "table" else variants[name]():
                got, again = call(), call()
                worst = max(relative(a, b) for a, b in zip(got, wanted, strict=True))
                same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
                found = {} if args.compile else times(call)
            split = "  ".join(f"{n} {t:.3f}" for n, t in found.items())
            bits = "same" if same else "OTHER"
            print(f"{name:<22} {sum(found.values()):.3f} ms, differs by {worst:.1e}, {bits} bits: {split}", flush=True)
        except Exception as error:  # one that does not compile; after an illegal access nothing else runs either
            print(f"{name:<22} {type(error).__name__}: {str(error)[:160]!r}", flush=True)
            if "CUDA" in str(error):
                break


if __name__ == "__main__":
    main()

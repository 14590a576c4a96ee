"""Attention over a window on one GPU: FlexAttention against blocks with a mask and against everything, as T grows.

    python -m benchmarks.gpu_windows [--json benchmarks/results/gpu_windows.json]

Where the curves cross is what `titans.flex.WORTH` should be. Nothing is timed before the two agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report, rows
from benchmarks.gpu import timed
from titans import flex
from titans.attention import AttentionSpec, banded, rotated, with_prefix

HEADS, GROUPS, WIDTH, PREFIX = 16, 4, 64, 4
THETA = 10_000.0
TOKENS = 65536
"""Of all rows together."""


def operands(length: int) -> dict[str, Any]:
    """What an attention has projected, in bfloat16: text, prefix, and places in the text."""
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=g).bfloat16().requires_grad_()

    batch = max(1, TOKENS // length)
    q, k, v = (normal(batch, length, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS))
    return {"q": q, "k": k, "v": v, "kp": normal(1, PREFIX, GROUPS, WIDTH), "vp": normal(1, PREFIX, GROUPS, WIDTH)}


def by_flex(x: dict[str, Tensor], window: int) -> Tensor:
    turned = rotated(x["q"], torch.arange(x["q"].shape[1], device="cuda")[None], THETA)
    return flex.attend(turned, x["k"], x["v"], window, None, (x["q"], x["kp"], x["vp"]))


def by_blocks(x: dict[str, Tensor], window: int) -> Tensor:
    """The prefix meets queries in channels of its own, which positions have not turned."""
    at = torch.arange(-window, x["q"].shape[1], device="cuda")[None]
    line = F.pad(x["k"], (0, 0, 0, 0, window, 0)), F.pad(x["v"], (0, 0, 0, 0, window, 0))
    spec = AttentionSpec(heads=HEADS, kv_heads=GROUPS, window=window, theta=THETA)
    q, line, fixed = with_prefix(x["q"], line, at[:, window:], THETA, (x["kp"], x["vp"]))
    return banded(spec, q, line, at[:, window:], at, fixed)


def by_everything(x: dict[str, Tensor], window: int) -> Tensor:
    """Causal attention without a window or prefix: another function, for its time."""
    q, k, v = (x[n].transpose(1, 2) for n in "qkv")
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def passes(call: Callable[..., Tensor], x: dict[str, Tensor], window: int) -> dict[str, list[float]]:
    """Milliseconds of both modes: median, 20%, 80%."""

    def both() -> Any:
        y = call(x, window)
        return torch.autograd.grad(y, list(x.values()), torch.ones_like(y), allow_unused=True)

    return {"forward": timed(torch.no_grad()(partial(call, x, window))), "both": timed(both)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    arguments = parser.parse_args()
    window: int = arguments.window
    found: list[report.Row] = []
    for length in arguments.lengths:
        x = operands(length)
        with torch.no_grad():
            error = (by_flex(x, window).double() - by_blocks(x, window).double()).norm()
            error = float(error / by_blocks(x, window).double().norm())
        assert error < 2e-2, f"they differ by {error}"
        sides = {"ours": by_flex, "blocks": by_blocks, "causal SDPA, no window": by_everything}
        measured = {side: passes(call, x, window) for side, call in sides.items()}
        print(length, f"error {error:.1e}", measured, flush=True)
        for mode, label in (("forward", "forward"), ("both", "forward and backward")):
            times = {side: (t[mode][0], (t[mode][1], t[mode][2])) for side, t in measured.items()}
            shape = f"B{max(1, TOKENS // length)} T{length} H{HEADS} D{WIDTH}"
            row = f"window {window} through FlexAttention, {label}"
            found += rows.comparison("gpu_windows", row, shape, "ms", times, {"blocks": None})
    if arguments.json:
        where = report.machine() | report.card()
        report.write(arguments.json, "Attention over a window", "python -m benchmarks.gpu_windows", where, found)


if __name__ == "__main__":
    main()

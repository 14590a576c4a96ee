"""Large chunks: LaCT's memory by this library and written out in bfloat16, `python -m benchmarks.large [--json FILE]`.

A chunk of 2048 tokens is a few products of large matrices, at which cuBLAS is as good as it gets: nothing but their
precision and what stands between them can differ. Ours keeps float32 and may multiply in TF32; the other side is what a
researcher writes for one training: bfloat16 from end to end, Newton-Schulz included, weights in float32 between chunks.

Shapes: B batch, T tokens, H heads, D channels, hidden width D.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from benchmarks import report, rows
from benchmarks.gpu import Result, measure
from benchmarks.gpu_cases import Case, Shape
from miras import AssociativeMemory
from miras.algorithms import newton_schulz
from miras.algorithms._muon import NS_LACT
from miras.testing import relative

NAMES = "gate", "up", "down"
CLOSE = 0.05
"""Relative error of outputs that bfloat16 Newton-Schulz is allowed."""


def leaves(s: Shape, device: str) -> list[Tensor]:
    """Queries, keys, values, rates ``[B, T, H, 3]``, log momentum, and the three matrices ``[B, H, D, D]``."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=g)

    q, k = (F.normalize(normal(s.B, s.T, s.H, s.D), dim=-1).bfloat16() for _ in range(2))
    v = normal(s.B, s.T, s.H, s.D).bfloat16()
    rates, momentum = 0.002 * torch.sigmoid(normal(s.B, s.T, s.H, 3)), F.logsigmoid(normal(s.B, s.T, s.H))
    return [q, k, v, rates, momentum, *(normal(s.B, s.H, s.D, s.D) / s.D**0.5 for _ in NAMES)]


def library(chunk: int) -> Callable[..., Tensor]:
    """The entry of the zoo, at that chunk size."""
    memory = AssociativeMemory(zoo.spec("lact", chunk_size=chunk))

    def call(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, momentum: Tensor, *weights: Tensor) -> Tensor:
        state = memory.started(dict(zip(NAMES, weights, strict=True)), q.shape[-1], v.shape[-1])
        return memory(q, k, v, {"lr": rates, "log_momentum": momentum}, state)[0]

    return call


def written_out(chunk: int) -> Callable[..., Tensor]:
    """LaCT (arXiv 2505.23884): read, then momentum of the chunk's gradients, Newton-Schulz, and norms as at the start."""

    def call(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, momentum: Tensor, *weights: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        rates = rates.permute(3, 0, 2, 1)[..., None].to(q.dtype)
        norms = [w.norm(dim=-2, keepdim=True) for w in weights]
        slots, outputs = [torch.zeros_like(w) for w in weights], []
        for start in range(0, q.shape[2], chunk):
            part = slice(start, start + chunk)
            gate, up, down = (w.to(q.dtype) for w in weights)
            outputs.append((F.silu(q[:, :, part] @ gate) * (q[:, :, part] @ up)) @ down)
            if start + chunk > q.shape[2]:
                break
            x, y, (rate_gate, rate_up, rate_down) = k[:, :, part], v[:, :, part], rates[..., part, :]
            a, b, back = x @ gate, x @ up, y @ down.mT
            s = torch.sigmoid(a)
            gradients = (
                (x * rate_gate).mT @ (back * b * s * (1 + a * (1 - s))),
                (x * rate_up).mT @ (back * a * s),
                (a * s * b * rate_down).mT @ y,
            )  # of what is to grow: the loss is its negative
            kept = momentum[:, part].exp().mean(1)[..., None, None]
            slots = [kept * m + g for m, g in zip(slots, gradients, strict=True)]
            weights = tuple(w + newton_schulz(m.to(q.dtype), 5, NS_LACT) for w, m in zip(weights, slots, strict=True))
            weights = tuple(F.normalize(w, dim=-2) * n for w, n in zip(weights, norms, strict=True))
        return torch.cat(outputs, 2).transpose(1, 2)

    return call


def check(device: str, d: int, chunk: int) -> float:
    """How far the two are apart, in float32 and, which is returned, as they are timed."""
    torch.set_float32_matmul_precision("highest")
    x = leaves(Shape(1, 3 * chunk, 2, d), device)
    exact = library(chunk)(*(t.float() for t in x))
    error = relative(written_out(chunk)(*(t.float() for t in x)).double(), exact.double())
    assert error < 1e-3, f"written out, float32 is off by {error}"
    error = relative(written_out(chunk)(*x).double(), exact.double())
    assert error < CLOSE, f"written out, bfloat16 is off by {error}"
    return error


def main() -> None:
    """A line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), version("torch"), flush=True)
    results: list[Result] = []
    for shape in (Shape(1, 32768, 4, 256), Shape(1, 32768, 2, 512)):
        print(f"bfloat16 written out is off by {check('cuda', shape.D, 256):.1e}", flush=True)
        given = leaves(shape, "cuda")
        ways = {
            "ours, float32": (library(2048), "highest"),
            "ours, TF32": (library(2048), "high"),
            "ours, TF32, compiled": (torch.compile(library(2048)), "high"),
            "written out, bfloat16": (written_out(2048), "high"),
            "written out, bfloat16, compiled": (torch.compile(written_out(2048)), "high"),
        }
        for side, (call, precision) in ways.items():
            torch.set_float32_matmul_precision(precision)
            found = measure(
                f"chunks of 2048, heads of {shape.D}", side, shape, lambda _, call=call, given=given: Case(call, given)
            )
            results.append(found)
            times = "  ".join(f"{n} {t[0]:.2f} [{t[1]:.2f} {t[2]:.2f}]" for n, t in found.times.items())
            print(f"{shape!s:<22} {side:<32} {times}  {found.peak_mib:.0f} MiB {found.error}", flush=True)
    if arguments.json:
        where = report.machine() | report.card()
        found = rows.gpu([asdict(r) for r in results], {})
        report.write(arguments.json, "LaCT's memory on a GPU", "python -m benchmarks.large", where, found)


if __name__ == "__main__":
    main()

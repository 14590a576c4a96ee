"""What bfloat16 inputs and a float32 state cost: every path against float64, gates at the ends of their ranges.

python -m benchmarks.precision

All runs see the same numbers, rounded to bfloat16 before anything is computed. ``y`` and ``state`` are relative errors of
the float32 outputs and of the final state, ``y in bf16`` of the outputs as they are returned. A nonlinear memory may
itself amplify rounding without end: ``spec`` is how far the float64 outputs move when the keys move by one unit in
float32's last place, which no path can undercut.
"""

from __future__ import annotations

import argparse
import math
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from miras import AssociativeMemory, MemoryState, MirasSpec
from miras.engine.plan import Path
from miras.testing import relative

BATCH, HEADS, DIM = 1, 2, 32
PREFIX = 48
"""Tokens on which the float64 run is itself held to the reference."""

MOMENTUM = math.log(0.99)
GATES: dict[str, dict[str, float]] = {
    "remember": {"log_decay": -1e-4, "log_momentum": MOMENTUM, "lr": 1.0},
    "forget": {"log_decay": -5.0, "log_momentum": MOMENTUM, "lr": 1.0},
    "lr 0": {"log_decay": -1e-4, "log_momentum": MOMENTUM, "lr": 0.0},
}
"""Ends of the ranges: nothing forgotten or nearly everything at every token, the largest learning rate or none."""


@dataclass(frozen=True)
class Case:
    """A spec, the path to measure, and how many tokens it is worth waiting for."""

    name: str
    path: Path
    spec: MirasSpec
    tokens: int = 16384


def case(name: str, path: Path, tokens: int = 16384, **fields: Any) -> Case:
    return Case(name, path, MirasSpec(**fields), tokens)


SMALL = {"name": "mlp", "expansion": 2}
CASES = [
    case("linear attention, decay", "factored", architecture="matrix", bias="dot", algorithm="gd"),
    case("decay per key channel", "factored", architecture="matrix", retention={"name": "l2", "per": "key"}, algorithm="gd"),
    case("Titans, chunk 16", "factored", architecture=SMALL),
    case("Titans, chunk 64", "factored", architecture=SMALL, chunk_size=64),
    case("Titans, chunk 1", "factored", 2048, architecture=SMALL, chunk_size=1),
    case("Yaad, chunk 16", "factored", architecture=SMALL, bias="yaad", algorithm="gd"),
    case("DeltaNet", "exact", architecture="matrix", retention="none", algorithm="gd", chunk_size=1),
    case(
        "Gated DeltaNet", "exact", architecture="matrix", retention={"name": "l2", "gradient_at": "decayed"},
        algorithm="gd", chunk_size=1,
    ),
    case("linear Titans", "exact", architecture="matrix", chunk_size=1),
    case("Longhorn", "exact", architecture="matrix", algorithm="implicit", chunk_size=1),
    case("least squares", "exact", architecture="matrix", algorithm="newton", chunk_size=1),
    case("Moneta, chunk 16", "materialised", architecture=SMALL, bias="lp", retention="lq", algorithm="gd"),
    case("Memora, chunk 16", "materialised", architecture=SMALL, retention="kl", algorithm="gd"),
    case("Memora, chunk 1", "materialised", 2048, architecture=SMALL, retention="kl", algorithm="gd", chunk_size=1),
    case("Muon, chunk 64", "materialised", architecture=SMALL, algorithm="muon", chunk_size=64),
    case("soft thresholds, chunk 16", "materialised", architecture="matrix", retention="elastic_net"),
]  # fmt: skip


def rounded(tokens: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries and keys and normal values, ``[B, T, H, D]`` bfloat16."""
    q, k, v = torch.randn(3, BATCH, tokens, HEADS, DIM, generator=g, dtype=torch.float64)
    return tuple(x.bfloat16() for x in (q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v))  # type: ignore[return-value]


@torch.no_grad()
def measure(case: Case, gates: dict[str, float]) -> dict[str, Any]:
    """Relative errors against float64 of one spec at one setting of its gates."""
    g = torch.Generator().manual_seed(0)
    q, k, v = rounded(case.tokens, g)
    memory = AssociativeMemory(case.spec, case.path)
    declared = {name: gate.init if "log" not in name else math.log(gate.init) for name, gate in case.spec.gates.items()}
    gates = {name: gates.get(name, usual) for name, usual in declared.items()}
    raw = memory.random_memory(HEADS, DIM, DIM, g)

    def run(dtype: torch.dtype, wide: torch.dtype, n: int, on: AssociativeMemory = memory, nudge: float = 0.0):
        start = memory.initial_state({w: x.to(wide) for w, x in raw.items()}, BATCH, DIM, DIM)
        keys = k[:, :n].to(dtype)
        keys = keys * (1 + nudge * torch.randn(keys.shape, generator=g, dtype=torch.float64)) if nudge else keys
        return on(q[:, :n].to(dtype), keys, v[:, :n].to(dtype), gates, start)

    y, state = run(torch.float64, torch.float64, case.tokens)
    truth, _ = run(torch.float64, torch.float64, PREFIX, memory.on("reference"))
    short, _ = run(torch.float64, torch.float64, PREFIX)
    y32, state32 = run(torch.float32, torch.float32, case.tokens)
    y16, _ = run(torch.bfloat16, torch.float32, case.tokens)
    moved, _ = run(torch.float64, torch.float64, case.tokens, nudge=torch.finfo(torch.float32).eps / 2)
    return {
        "y": relative(y32.double(), y),
        "state": _error(state32, state),
        "y in bf16": relative(y16.double(), y),
        "spec": relative(moved, y),
        "prefix against reference": relative(short, truth),
        "finite": all(bool(x.isfinite().all()) for x in (y16, y32, *state32.memory.values(), *state32.slots.values())),
    }


def _error(got: MemoryState, wanted: MemoryState) -> float:
    """The worst relative error of any weight."""
    return max(relative(got.memory[n].double(), w) for n, w in wanted.memory.items())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--tokens", type=int, help="at most so many in every case")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    options = parser.parse_args(arguments)
    measured: dict[str, Any] = {}
    rows: list[list[str]] = []
    columns = ("y", "state", "y in bf16", "spec", "prefix against reference")
    for c in CASES:
        c = Case(c.name, c.path, c.spec, min(c.tokens, options.tokens or c.tokens))
        for setting, gates in GATES.items():
            if setting == "forget" and "log_decay" not in c.spec.gates:
                continue
            found = measured[f"{c.name}, {setting}"] = {
                "spec_dict": c.spec.to_dict(),
                "tokens": c.tokens,
                **measure(c, gates),
            }
            numbers = [f"{found[column]:.0e}" for column in columns]
            rows.append([c.path, c.name, f"{c.tokens}", setting, *numbers, "yes" if found["finite"] else "NO"])
    title = f"Relative error against float64, {HEADS} heads of {DIM}"
    report.table(title, ["path", "memory", "tokens", "gates", *columns, "finite"], rows)
    path = report.save(options.out, "precision", {"machine": report.machine(), "measured": measured})
    print(f"\nsaved {path}")


if __name__ == "__main__":
    main()

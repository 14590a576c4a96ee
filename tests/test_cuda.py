"""CUDA kernels give what the Triton kernels give that they stand for, on a processor: launch by launch, on the same numbers.

Triton's interpreter computes float32, the CUDA sources bfloat16: they differ by what rounding costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.sm90_clusters import sources
from miras import MirasSpec
from miras.architectures import MLP
from miras.biases import L2
from miras.kernels import Dims, clusters, cuda, trust
from miras.kernels._mlp import cluster, launch, ops
from miras.kernels._mlp.launch import Given, Recipe, Seen
from miras.testing.problems import problem
from tests.cuda import host
from tests.kernels import DEVICE
from tests.perceptrons import moved

ROUNDING = 2e-2
"""Of operands, from product to product: scans stay below 5e-3, gradients of reads behind three products below
1.5e-2, those of rows and mixing, which are sums of little, below 3e-2."""

TITANS: dict[str, Any] = {"bias": "l2", "retention": "l2", "algorithm": "momentum"}
PLAIN: dict[str, Any] = {"retention": "l2", "algorithm": "gd"}

SPECS = {
    "a slot": MirasSpec.make(architecture=MLP(expansion=4), **TITANS),
    "none": MirasSpec.make(architecture=MLP(expansion=4, activation="silu"), bias="l2", **PLAIN),
    "one program": MirasSpec.make(architecture=MLP(expansion=2, activation="tanh"), **TITANS),
    "bounded": MirasSpec.make(architecture=MLP(expansion=4), **TITANS, step_bound=1.0),
    "huber, bounded, no slot": MirasSpec.make(
        architecture=MLP(expansion=2, norm=False), bias="huber", **PLAIN, step_bound=1.0
    ),
    "huber per channel": MirasSpec.make(architecture=MLP(expansion=2), bias={"name": "huber", "per": "value"}, **PLAIN),
    "log_cosh": MirasSpec.make(architecture=MLP(expansion=2), bias="log_cosh", **PLAIN),
    "no norm": MirasSpec.make(architecture=MLP(expansion=2, norm=False, residual=False), bias="dot", **PLAIN),
}

FULL = frozenset(
    (
        *("kept_o", "squares", "out", "d_u2", "d_rates", "d_rows", "d_w1", "d_w2", "d_k", "near"),
        *("d_gate", "d_lr", "d_inverse", "d_mix", "d_into"),
    )
)
"""What stays in float32."""

WIDE = "h_", "slope_", "turn_", "u1_", "hr_", "d_h", "d_u1", "d_zr", "d_u2", "d_rates", "sent"

OF_A_GROUP = frozenset((*["seen1", "seen2", "kept_o", "kept_u2", "late1", "late2", "dz_", "d_o_", "squares"], *WIDE))
"""What has room for all chunks of a group, of which the last may have fewer."""


OF_TOKENS = frozenset(["answer", "out", "d_q", "near", "d_k", "d_v", "d_lr", "d_inverse", "d_gate"])
OF_CHUNKS = frozenset(["d_rows", "d_pairs", "d_mix", "d_into"])
"""What has room for all tokens or chunks, of which a launch has some."""


def part(name: str, t: Tensor, group: tuple[int, int, int]) -> Tensor:
    """Of a result, what belongs to a group."""
    first, count, _ = group
    if name in OF_A_GROUP:
        return t.flatten(0, 1)[: len(t) * count]  # heads follow one another without gaps
    if name in OF_CHUNKS:
        return t[:, first : first + count]
    return t[:, 64 * first : 64 * (first + count)] if name in OF_TOKENS else t


def narrow(t: Tensor | None) -> Any:
    return None if t is None else t.bfloat16()


class Beside:
    """Launches of the Triton kernels, and those of the CUDA kernels on the same numbers before them."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}  # squares of differences and of numbers, over all launches
        self.launch = ops.launch

    @property
    def errors(self) -> dict[str, float]:
        return {what: (off / size) ** 0.5 if size else off for what, (off, size) in self.sums.items()}

    def __call__(self, kernel: Any, programs: int, how: Recipe, x: Given, *given: Any) -> None:
        """As `miras.kernels._mlp.launch.launch`."""
        own = {
            "scan": self._scan,
            "read": self._read,
            "read_backward": self._read_backward,
            "query_backward": self._query_backward,
            "reverse": self._reverse,
            "write_backward": self._write_backward,
        }.get(kernel.__name__)
        named = dict(zip(kernel.arg_names, given, strict=False))
        narrowed = x._replace(q=narrow(x.q), k=narrow(x.k), v=narrow(x.v), pairs=narrow(x.pairs))
        found = own(how, narrowed, named, given[-3:]) if own else {}
        self.launch(kernel, programs, how, x, *given)
        for name, got in found.items():
            got, wanted = (part(name, t, given[-3:]) for t in (got, named[name]))
            what = f"{kernel.__name__} {name}"
            off, size = self.sums.get(what, (0.0, 0.0))
            self.sums[what] = (
                off + (got.double() - wanted).square().sum().item(),
                size + wanted.double().square().sum().item(),
            )

    def _seen(self, w1: Any, w2: Tensor, o: Tensor, u2: Tensor, squares: Tensor) -> Seen:
        blank = torch.empty(0)
        return Seen(blank if w1 is None else w1, w2, o, u2, squares, None, None, None, None)

    def _scan(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        ends = {n: torch.empty_like(named[n]) for n in ("end1", "end2") if named[n] is not None}
        seen = {
            n: torch.full_like(named[n] if n in FULL else narrow(named[n]), float("nan"))
            for n in ("seen1", "seen2", "kept_o", "kept_u2", "squares")
        }
        given = self._seen(*seen.values())
        cluster.scan(x, how, [named["w1"], named["w2"]], list(ends.values()) or [None, None], given, group)
        if x.inverse is None:
            del seen["squares"]
        return seen | ends

    def _read(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        given = {n: narrow(named[n]) for n in ("seen1", "seen2", "kept_u2")}
        out = None if named["out"] is None else torch.full_like(named["out"], float("nan"))
        answer = torch.full_like(narrow(named["answer"]), float("nan"))
        seen = self._seen(given["seen1"], given["seen2"], named["kept_u2"], given["kept_u2"], named["squares"])
        cluster.read(x, how, seen, out, answer, group)
        return {"answer": answer} if out is None else {"answer": answer, "out": out}

    def _read_backward(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        given = {n: t if n in FULL else narrow(t) for n, t in named.items() if isinstance(t, Tensor)}
        out = {n: torch.full_like(given[n], float("nan")) for n in (*WIDE, "d_rows", "d_pairs")}
        out["d_rates"][:, :, 0] = named["d_rates"][:, :, 0] = 0.0  # of another kernel
        seen = self._seen(given["seen1"], given["seen2"], named["kept_u2"], given["kept_u2"], named["squares"])
        d = x._replace(rows=out["d_rows"], pairs=out["d_pairs"])
        wide = [out[n] for n in WIDE]
        cluster.read_backward(x, how, named["out"], given["d_answer"], seen, d, wide, group)
        return out

    def _query_backward(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        given = {n: t if n in FULL else narrow(t) for n, t in named.items() if isinstance(t, Tensor)}
        out = {n: given[n].clone() for n in ("d_q", "near", "d_rows", "d_pairs", "d_rates")}
        seen = self._seen(given["seen1"], given["u1_"], out["near"], given["u1_"], named["squares"])
        blank = given["u1_"]
        wide = [blank, blank, blank, blank, blank, blank, blank, given["d_zr"], blank, out["d_rates"], blank]
        d = x._replace(q=out["d_q"], rows=out["d_rows"], pairs=out["d_pairs"])
        cluster.query_backward(x, how, given["d_answer"], seen, wide, out["near"], d, group)
        return out

    def _reverse(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        given = {n: t if n in FULL else narrow(t) for n, t in named.items() if isinstance(t, Tensor)}
        out = {n: given[n].clone() for n in ("d_w1", "d_w2", "late1", "late2", "dz_", "d_o_", "d_k", "d_v")}
        d_w1, d_w2, late1, late2, *results = out.values()
        if x.gate is not None:
            out["d_gate"] = torch.full_like(given["d_gate"], float("nan"))
        seen = self._seen(None, given["seen2"], given["kept_o"], given["kept_u2"], named["squares"])
        wide = [given[n] for n in WIDE]
        cluster.reverse(x, how, seen, wide, [d_w1, d_w2], [late1, late2], [*results, out.get("d_gate")], group)
        return out

    def _write_backward(self, how: Recipe, x: Given, named: dict[str, Any], group: Any) -> dict[str, Tensor]:
        given = {n: t if n in FULL else narrow(t) for n, t in named.items() if isinstance(t, Tensor)}
        out = {
            n: torch.full_like(given[n], float("nan")) for n in ("d_lr", "d_inverse", "d_mix", "d_into") if n in given
        }
        d_k = torch.full_like(narrow(named["d_k"]), float("nan"))
        seen = self._seen(given["seen1"], given["seen2"], named["near"], given["kept_u2"], named["squares"])
        h, u1 = given["h_"], given["u1_"]
        wide = [h, h, h, u1, h, h, h, h, h, named["d_rates"], h]
        d = x._replace(k=d_k, lr=out["d_lr"], inverse=out.get("d_inverse"), mix=out["d_mix"], into=out["d_into"])
        late = [given["late1"], given["late2"]]
        cluster.write_backward(x, how, seen, wide, late, given["dz_"], named["near"], d, group)
        return out | {"d_k": d_k}


def spec_of(name: str) -> MirasSpec:
    return replace(SPECS[name], chunk_size=64, step_bound=1.0 if "bounded" in name else None)


@pytest.mark.skipif(host.compiler is None, reason="there is no g++")
@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels themselves run")
@pytest.mark.parametrize("name", SPECS)
def test_kernels_of_the_perceptron(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Beside()
    monkeypatch.setattr(ops, "launch", beside)
    monkeypatch.setattr(cuda, "start", host.start)
    monkeypatch.setattr(launch, "PROGRAMS", 4)
    monkeypatch.setattr(launch, "FEWEST", 1)
    p = problem(spec_of(name), length=192, d_key=64, d_value=64, batch=1, heads=2)  # three chunks in two groups
    p = moved(p.map(lambda x: x.bfloat16().float()), torch.float32)
    steps = {n: x if n == "delta" else x / 32 for n, x in p.gates.items()}  # small ones that are hardly forgotten
    p = replace(p, gates=steps)
    leafy, leaves = p.leaves()
    y, _ = leafy.run("kernel")
    torch.autograd.grad(y.square().sum(), list(leaves.values()), allow_unused=True)
    kernels = {"scan", "read", "read_backward", "query_backward", "reverse", "write_backward"}
    assert {n.split()[0] for n in beside.errors} == kernels
    bad = {n: e for n, e in beside.errors.items() if not e <= (2 if n.endswith(("d_rows", "d_mix")) else 1) * ROUNDING}
    assert not bad, bad


@pytest.mark.skipif(host.compiler is None, reason="there is no g++")
@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels themselves run")
@pytest.mark.parametrize("name", ["a slot", "bounded"])
def test_a_memory_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and gradients of everything, as a trial at first use has them."""
    monkeypatch.setattr(cuda, "start", host.start)
    monkeypatch.setattr(clusters, "CROWD", 1)
    kernel, cpu = replace(clusters.KERNEL, crowd=2), torch.device("cpu")
    assert trust.error(kernel, spec_of(name), Dims(64, 64), cpu, torch.bfloat16, 8) < trust.WRONG / 2


@pytest.mark.skipif(cuda.compiler() is None, reason="there is no NVRTC")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiles(dtype: torch.dtype) -> None:
    for source in sources(L2(), 1, 256, dtype, norm=True):
        assert cuda.compiled(source.files, source.options)


@pytest.mark.skipif(cuda.compiler() is None, reason="there is no NVRTC")
def test_says_what_does_not_compile() -> None:
    source, *_ = sources(L2(), 1, 256, torch.bfloat16, norm=True)
    wrong = replace_in(source.constants, "SHARED", 0)
    with pytest.raises(RuntimeError, match="what the launch has set aside"):
        cuda.compiled(source.files, source._replace(constants=wrong).options)


def replace_in(pairs: tuple[tuple[str, Any], ...], name: str, value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((dict(pairs) | {name: value}).items())

"""Small problems that together use every feature of every engine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from miras.architectures import Architecture, FastWeight, View
from miras.spec import MirasSpec
from miras.testing import Problem, problem
from miras.testing.strategies import small_module

MLP = {"name": "mlp", "expansion": 2}
BARE = {"name": "mlp", "expansion": 2, "residual": False}
NARROW = {"name": "mlp", "expansion": 1, "residual": False, "norm": False}
FULL = {**MLP, "bias": True, "affine": True}
LOW = {"name": "low_rank", "rank": 2}
MODULE = {"name": "from_module", "factory": small_module}
KEY, VALUE = {"name": "l2", "per": "key"}, {"name": "l2", "per": "value"}
ENTRY = {"name": "l2", "per": "entry"}
LATE = {"name": "l2", "gradient_at": "decayed"}
MOMENTUM2 = {"name": "momentum", "order": 2}
MUON = {"name": "muon", "steps_ns": 2}
LACT = {"name": "chunk_step", "newton_schulz": "lact", "per": "weight"}
NORMED = {"name": "weight_norm", "decays": False}
DEEP = {"name": "on_features", "inner": {"name": "gated_mlp", "expansion": 1}, "residual": True}
WIDE = {"d_key": 3, "d_value": 5}
TALL = {"d_key": 5, "d_value": 3}
PAIRS = {"pairs": 2}
ONE = {"batch": 1, "heads": 1}
FREE: dict[str, Any] = {"step_bound": None}


@dataclass(frozen=True)
class Mixed(Architecture):
    """An architecture of a few lines with a weight of every kind, known to no registry."""

    name: ClassVar[str] = "mixed"

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        """A matrix, a vector and a tensor."""
        return {
            "w": FastWeight((d_key, d_value), reads_key=True, writes_value=True),
            "gain": FastWeight((d_value,), "vector", writes_value=True),
            "t": FastWeight((d_value, d_value), "tensor"),
        }

    def forward(self, w: View, x: Tensor) -> Tensor:
        """``gain * (x W) + tanh(x W) T``."""
        h = w.dense("w", x)
        return w.vector("gain") * h + (h.tanh().unsqueeze(-2) @ w.tensor("t")).squeeze(-2)


@dataclass(frozen=True)
class Case:
    """A problem, the paths that must claim it (the planned one first), and how many tokens its state has already seen."""

    name: str
    claims: str
    spec: MirasSpec
    sizes: dict[str, Any]
    warm: int = 0
    gates: dict[str, float] | None = None  # factors of gates

    def problem(self) -> Problem:
        """The problem, from a state in the middle of a chunk."""
        length = self.sizes["length"] + self.warm
        p = problem(self.spec, **self.sizes | {"length": length})
        p = replace(p, gates={g: x * (self.gates or {}).get(g, 1.0) for g, x in p.gates.items()})
        if not self.warm:
            return p
        _, state = p.slice(0, self.warm).run("reference")
        return replace(p.slice(self.warm, length), state=state)


def make(claims: str, sizes: dict[str, Any], warm: int = 0, gates: dict[str, float] | None = None, **spec: Any) -> Case:
    fields = {"architecture": "matrix", "bias": "l2", "algorithm": "gd", "chunk_size": 1, "step_bound": 0.7} | spec
    name = re.sub(" at 0x[0-9a-f]*", "", f"{fields} {sizes or ''}{f' after {warm}' if warm else ''}")
    made = MirasSpec(**fields)  # pyright: ignore[reportArgumentType]
    return Case(name, claims, made, {"length": 7} | sizes, warm, gates)


def cases() -> list[Case]:
    """All cases; E exact, F factored, M materialised, P picard, U fused."""
    c = make
    return [
        # one matrix, a chunk a token: triangular solves
        c("EFMP", WIDE),
        c("EFMP", TALL, algorithm="momentum", read="previous"),
        c("EFMP", {}, algorithm=MOMENTUM2, read="anchor", **FREE),
        c("EFM", {}, retention=LATE, read="previous", **FREE),
        c("EFM", {}, retention=LATE, algorithm="nesterov"),
        c("EFMP", WIDE | {"length": 36}, retention=KEY),
        c("EFM", TALL | {"length": 20}, retention={**KEY, "gradient_at": "decayed"}, read="previous", **FREE),
        c("EFMP", WIDE, algorithm={"name": "gd", "per": "key"}, **FREE),
        c("EFMP", {}, algorithm="dgd", bias={"name": "l2", "half": False}),
        c("EFM", {}, algorithm="implicit", retention="none"),
        c("EFM", {}, algorithm="implicit", bias={"name": "l2", "half": False}, **FREE),
        c("EFM", {"d_key": 3}, architecture={"name": "feature_map", "kind": "elu"}, algorithm="newton"),
        c("EFMP", {"length": 70, **ONE, **WIDE}, algorithm="momentum", **FREE),
        c("EFMP", {"length": 70, **ONE}, retention=KEY, **FREE),
        c("FMP", WIDE, retention=VALUE),
        c("FMP", {}, algorithm={"name": "gd", "per": "value"}, bias="huber"),
        c("FM", WIDE, algorithm={"name": "implicit", "per": "value"}, retention="none"),
        c("EFMP", {}, bias="feedback", retention=KEY, algorithm={"name": "multi_step", "per": "key"}),
        c("EFM", TALL, bias="feedback", algorithm="implicit", retention=LATE, **FREE),
        c("M", WIDE, retention=ENTRY),
        c("M", TALL, retention={**ENTRY, "gradient_at": "decayed"}, algorithm="momentum", read="previous"),
        c("M", {"length": 5, **PAIRS, **WIDE}, retention={**ENTRY, "gradient_at": "decayed"}, chunk_size=3),
        c("M", {"length": 4}, architecture=FULL, retention=ENTRY, algorithm="multi_step", chunk_size=3),
        c("M", {"length": 4}, architecture="vector", retention={**ENTRY, "gradient_at": "decayed"}, chunk_size=2),
        c("M", {"length": 4, **WIDE}, architecture=Mixed(), retention=ENTRY, chunk_size=3),
        # free of chunks
        c("EFM", {"length": 150, **ONE, **TALL}, 3, bias="dot", chunk_size=5, **FREE),
        c("EFM", {"length": 70, **ONE}, 3, bias="dot", algorithm="momentum", chunk_size=4, read="previous"),
        c("FM", {"length": 67, **ONE, **WIDE}, bias="dot", retention=VALUE, chunk_size=3, read="previous", **FREE),
        c("EFM", {"length": 40, **WIDE}, bias="dot", retention=KEY, chunk_size=5, **FREE),
        c("FM", {"length": 9, **PAIRS}, bias="dot", algorithm="fir", chunk_size=2, read="anchor", **FREE),
        c("FM", {"length": 9, **PAIRS}, 1, bias="dot", algorithm="omega", chunk_size=2, **FREE),
        c("EFMP", {}, bias="dot", algorithm="aggmo", **FREE),
        # chunks
        c("FM", WIDE, 2, algorithm="momentum", chunk_size=3, anchor_lag=1),
        c("FM", TALL, algorithm="qhm", chunk_size=4, anchor_lag=2, read="previous"),
        c("FM", {}, 1, algorithm=MOMENTUM2, chunk_size=3, read="anchor"),
        c("FM", {}, retention=LATE, chunk_size=3),
        c("FM", {"length": 5}, retention={**KEY, "gradient_at": "decayed"}, chunk_size=3),
        c("FM", {"length": 5}, architecture=FULL, retention={**VALUE, "gradient_at": "decayed"}, chunk_size=3),
        c("FM", {}, 1, architecture=FULL, algorithm="momentum", chunk_size=3),
        c("FM", {"length": 5}, architecture=FULL, algorithm="aggmo", chunk_size=3, read="previous", **FREE),
        c("FM", {}, architecture=FULL, bias="huber", chunk_size=3, read="anchor", algorithm="dgd"),
        c("FM", {"length": 5, **WIDE}, architecture=BARE, algorithm={"name": "gd", "per": "key"}, chunk_size=2),
        c("FM", {"length": 5, **WIDE}, architecture=BARE, algorithm={"name": "gd", "per": "value"}, chunk_size=2),
        c("FM", {"length": 41, **WIDE, **ONE}, architecture=LOW, retention=KEY, chunk_size=40, **FREE),
        c("FM", {"length": 38, **TALL, **ONE}, architecture=LOW, retention=VALUE, chunk_size=20, read="previous"),
        c("FM", {"length": 5, **PAIRS}, 1, algorithm={"name": "momentum", "per": "key"}, chunk_size=3, **FREE),
        c("FM", PAIRS),
        c("M", {"length": 5, **PAIRS}, retention={**KEY, "gradient_at": "decayed"}, chunk_size=3),
        c("M", {"length": 5, **PAIRS}, architecture=LOW, retention=KEY, chunk_size=3),
        c("M", {"length": 9, **WIDE}, algorithm="momentum", retention=VALUE, chunk_size=4, read="previous"),
        c("FM", PAIRS, architecture=FULL, bias={"name": "huber", "per": "value"}, chunk_size=2),
        c("FM", {}, architecture="vector", algorithm={"name": "momentum", "per": "value"}, chunk_size=3),
        c("FM", {}, architecture="vector", retention=KEY, chunk_size=3, read="previous"),
        c("FM", {"length": 40, **ONE}, retention=KEY, chunk_size=40, gates={"log_decay": 60}, **FREE),
        c("FM", {"length": 20, **ONE}, algorithm="momentum", chunk_size=20, gates={"log_decay": 60, "log_momentum": 60}),
        c("FM", {}, 1, algorithm="mini_batch", chunk_size=3),
        c("FM", WIDE, 2, architecture=FULL | {"residual": False}, algorithm="mini_batch", chunk_size=4, anchor_lag=1),
        c("FM", {}, algorithm="mini_batch", bias="dot", **FREE),
        c("FM", {"length": 8}, 2, algorithm="chunk_step", chunk_size=3, anchor_lag=1),
        c("FM", {"length": 6}, architecture=FULL, algorithm=LACT, chunk_size=3, read="anchor"),
        c("M", {"length": 6}, architecture="slots", retention="orthogonal", algorithm="chunk_step", chunk_size=2),
        c("FM", {"length": 6, **WIDE}, architecture=LOW, retention=NORMED, algorithm=LACT, chunk_size=3, read="anchor"),
        c("FM", {"length": 5}, architecture=DEEP, algorithm="momentum", chunk_size=2),
        # two matrices
        c("FMU", {"length": 8}, 1, architecture=MLP, algorithm="momentum", chunk_size=3),
        c("FMU", {"length": 5, **WIDE}, architecture=BARE, bias="huber", algorithm=MOMENTUM2, chunk_size=2, **FREE),
        c("FMU", {"length": 5, "d_key": 2, "d_value": 7}, architecture=NARROW, bias="l1", retention="none", chunk_size=2),
        c("FMU", {"length": 6, **TALL}, 2, architecture=NARROW, bias="yaad", algorithm="fir", chunk_size=3),
        c("FMU", {}, architecture={**MLP, "activation": "relu"}, bias="dot", algorithm="qhm", chunk_size=3),
        c("FMU", {"length": 6}, architecture=NARROW, bias="dot", chunk_size=2, **FREE),
        c("FMU", PAIRS, 1, architecture={**MLP, "norm": False}, algorithm={"name": "multi_step"}, chunk_size=3),
        c("FMU", {}, architecture=MLP, bias={"name": "huber", "per": "value"}, chunk_size=4),
        c("FM", {"length": 5}, architecture=MLP, algorithm={"name": "omega", "size": 2}, chunk_size=2),
        c("FM", {"length": 5}, architecture=MLP, algorithm="dgd", chunk_size=2),
        c("FM", {"length": 5}, architecture=MLP, chunk_size=3, anchor_lag=1),
        c("FM", {"length": 5, **PAIRS}, architecture=MLP, chunk_size=2),
        c("FM", {"length": 4}, architecture={**MLP, "depth": 3}, chunk_size=2),
        # fixed points
        c("FMPU", {}, architecture=MLP, algorithm="momentum"),
        c("FMP", {"length": 5}, architecture=FULL, algorithm="nesterov", read="previous", **FREE),
        c("FMP", {"length": 19, **ONE, **WIDE}, architecture=LOW, retention=KEY),
        c("FMP", {"length": 19, **ONE, **TALL}, architecture=LOW, retention=VALUE, read="anchor", **FREE),
        c("FMP", {"length": 66, **ONE}, bias="log_cosh", algorithm="qhm"),
        c("FMP", {}, architecture="vector", algorithm="fir", bias="huber"),
        c("M", {"length": 5, **WIDE}, 1, architecture=Mixed(), algorithm="momentum", chunk_size=3),
        c("M", {"length": 4, **WIDE}, architecture=Mixed(), retention=VALUE, read="previous", chunk_size=2),
        c("M", {"length": 4, **WIDE}, architecture=Mixed(), retention={**KEY, "gradient_at": "decayed"}, chunk_size=3),
        # links
        c("M", {}, architecture=MLP, retention="kl", chunk_size=3),
        c("M", {}, 1, retention={"name": "kl", "axis": "out"}, chunk_size=3, read="previous", algorithm="momentum"),
        c("FM", {}, 1, architecture=FULL, retention="kl", chunk_size=3, read="anchor", algorithm="momentum"),
        c("FM", {"length": 5}, retention={"name": "kl", "per": "key"}, chunk_size=3, read="anchor"),
        c("M", {"length": 5}, retention="f_divergence", chunk_size=3),
        c("M", WIDE, retention="logistic", algorithm="momentum"),
        c("FM", {}, 1, bias="kl", algorithm={"name": "gd", "per": "value"}, chunk_size=2),
        c("FM", {}, algorithm={"name": "omega", "size": 2}),
        c("M", {}, retention="exponentiated", chunk_size=2, anchor_lag=1),
        c("M", {}, 1, retention="lq", chunk_size=3),
        c("FM", {}, 1, architecture=FULL, retention={"name": "lq", "link_at": "chunk"}, chunk_size=3),
        c("FM", WIDE, retention={"name": "weight_norm", "link_at": "chunk"}, chunk_size=3, read="previous"),
        c("FM", {"length": 5}, 1, architecture=FULL, chunk_size=3, algorithm="momentum",
          retention={"name": "weight_norm", "link_at": "chunk", "axis": "out"}, read="previous"),
        c("FM", {}, architecture=LOW, retention={"name": "weight_norm", "form": "pre"}, chunk_size=3, read="anchor"),
        c("M", {"length": 5}, architecture="slots", retention="orthogonal", chunk_size=3),
        c("M", {"length": 5}, retention={"name": "weight_norm", "link_at": "chunk", "per": "key"}, chunk_size=3),
        *(
            c(claims, {}, 1, {"threshold": 100}, retention={"name": "elastic_net", "form": form, "per": per},
              chunk_size=3, read=read, anchor_lag=lag)
            for form, per, read, lag, claims in [
                ("ftrl", "head", "after", 0, "M"),
                ("ftrl", "key", "previous", 1, "M"),
                ("ftrl", "head", "anchor", 0, "FM"),
                ("proximal", "head", "after", 1, "M"),
                ("proximal", "value", "previous", 0, "M"),
                ("proximal", "head", "anchor", 1, "FM"),
            ]
        ),
        c("M", {"length": 5}, 1, {"threshold": 100}, retention="elastic_net", algorithm="omega", chunk_size=2),
        # windows, several steps, directions, second moments
        c("FM", {"length": 6}, 1, algorithm={"name": "omega", "size": 4}, chunk_size=2),
        c("FM", {"length": 6, **PAIRS, **WIDE}, 1, algorithm={"name": "omega", "size": 3, "inner": "momentum"}, chunk_size=2),
        c("FM", {"length": 5}, architecture=FULL, bias="huber", algorithm={"name": "omega", "size": 3}, chunk_size=4),
        c("M", {"length": 5}, 1, algorithm={"name": "omega", "size": 3, "inner": MUON}, chunk_size=2),
        c("M", {"length": 5}, algorithm={"name": "omega", "size": 2}, retention=KEY, chunk_size=3, read="previous"),
        c("EFMP", {"length": 5}, algorithm="multi_step"),
        c("FM", {"length": 5}, 1, algorithm={"name": "multi_step", "count": 3}, chunk_size=4, read="previous"),
        c("FMP", {"length": 4}, architecture=MLP, algorithm="multi_step", retention=KEY),
        c("M", WIDE, 1, algorithm=MUON, chunk_size=3),
        c("FM", {}, 1, bias={"name": "l2", "half": False}, algorithm={"name": "omega", "size": 2}, chunk_size=3),
        c("M", {"length": 5}, architecture=FULL, algorithm=MUON, chunk_size=3, read="anchor", **FREE),
        c("M", {"length": 4}, architecture=MODULE, algorithm="momentum", retention=KEY, chunk_size=3),
        c("M", {"length": 4, **WIDE}, architecture=MODULE, bias="yaad", read="previous",
          algorithm={"name": "gd", "per": "value"}, chunk_size=2),
        c("FM", WIDE, 1, algorithm="newton", chunk_size=3, read="previous", **FREE),
        c("FM", WIDE, 1, algorithm={"name": "newton", "solver": "cg"}, chunk_size=3),
        c("EFM", {"length": 5}, bias="dot", algorithm={"name": "newton", "solver": "cg", "iterations": 4}, chunk_size=2, **FREE),
        c("FM", TALL, 1, algorithm="implicit", bias="huber", chunk_size=3),
    ]  # fmt: skip

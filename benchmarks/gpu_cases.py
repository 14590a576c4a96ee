"""What `benchmarks.gpu` times: memories of ours, each gated by correctness, and what other packages have in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miras import AssociativeMemory, MirasSpec
from miras.engine.plan import Path
from miras.testing import TOLERANCE, relative

TTT: dict[str, Any] = dict(
    architecture={"name": "mlp", "depth": 1, "bias": True},
    bias="l2",
    retention="none",
    algorithm="mini_batch",
    step_bound=None,
)


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
        "reader": torch.sigmoid(normal(*gate)),
    }


def by_channel(s: Shape) -> Tensor:
    """Log decays of every key channel, as those of a head in `operands`."""
    g = torch.Generator("cuda").manual_seed(3)
    return F.logsigmoid(torch.randn(s.B, s.T, s.H, s.D, device="cuda", generator=g) + 4)


def ours(path: Path = "kernel", tokens: int = 200, rate: float = 1.0, **fields: Any) -> Callable[[Shape], Case]:
    """A memory of one matrix a head, from zero, or of another architecture; as many tokens are compared before it is timed."""
    spec = MirasSpec.make(**{"architecture": "matrix"} | fields)

    def build(s: Shape) -> Case:
        x, start = operands(s), weights(spec, s)
        if "log_decay" in spec.gates and spec.gates["log_decay"].per == "key":
            x["log_decay"] = by_channel(s)
        x["lr"] *= rate  # behind a norm large steps would magnify rounding
        gate(spec, x, start, tokens)
        memory = AssociativeMemory(spec, path)
        return Case(lambda *leaves: answers(memory, start, *leaves), leaves_of(spec, x, start))

    return build


def weights(spec: MirasSpec, s: Shape) -> dict[str, Tensor]:
    """What a memory starts with that is nothing if it is zero, ``[B, H, *weight]``."""
    if spec.architecture.is_linear:
        return {}
    g = torch.Generator("cuda").manual_seed(1)
    shapes = AssociativeMemory(spec).shapes(s.D, s.D)
    return {n: torch.randn(s.B, s.H, *w.shape, device="cuda", generator=g) / s.D**0.5 for n, w in shapes.items()}


def leaves_of(spec: MirasSpec, x: dict[str, Tensor], start: dict[str, Tensor]) -> list[Tensor]:
    """Everything that is differentiated."""
    return [*(x[n] for n in ("q", "k", "v", *spec.gates)), *start.values()]


def answers(
    memory: AssociativeMemory, start: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Tensor
) -> Tensor:
    """Outputs of a memory from `leaves_of`."""
    names = list(memory.spec.gates)
    raw = dict(zip(start, rest[len(names) :], strict=True))
    state = memory.started(raw, q.shape[-1], v.shape[-1]) if raw else None
    return memory(q, k, v, dict(zip(names, rest, strict=False)), state)[0]


def whole(build: Callable[[Shape], Case]) -> Callable[[Shape], Case]:
    """The same without splitting a sequence into segments."""

    def built(s: Shape) -> Case:
        case = build(s)

        def call(*leaves: Tensor) -> Tensor:
            segments: Any = import_module("miras.kernels._matrix.split")
            most, segments.MOST = segments.MOST, 1
            try:
                return case.call(*leaves)
            finally:
                segments.MOST = most

        return Case(call, case.leaves)

    return built


def gate(spec: MirasSpec, x: dict[str, Tensor], start: dict[str, Tensor], tokens: int) -> None:
    """No number without correctness: the kernel against a PyTorch path in float64, outputs and gradients, on a piece."""

    def go(path: Any, dtype: torch.dtype) -> list[Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        cut = {n: t[:1, :tokens, :2].to(dtype if n in "qkv" else wide) for n, t in x.items()}
        few = {n: w[:1, :2].to(wide) for n, w in start.items()}
        leaves = [t.detach().requires_grad_() for t in leaves_of(spec, cut, few)]
        y = answers(AssociativeMemory(spec, path), few, *leaves)
        # not smooth along channels: a norm over them would leave nothing but the rounding of such a gradient
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.device)
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


def fla_kda(s: Shape) -> Case:
    chunk_kda: Any = import_module("fla.ops.kda").chunk_kda
    x = operands(s)
    return Case(
        lambda q, k, v, g, beta: chunk_kda(q, k, v, g, beta, scale=1.0)[0],
        [x["q"], x["k"], x["v"], by_channel(s), x["lr"].bfloat16()],
    )


def fla_gla(s: Shape) -> Case:
    """Without a rate, which is one multiplication of the keys."""
    chunk_gla: Any = import_module("fla.ops.gla").chunk_gla
    x = operands(s)
    return Case(
        lambda q, k, v, g: chunk_gla(q, k, v, g, scale=1.0)[0],
        [x["q"], x["k"], x["v"], by_channel(s)],
    )


def fla_ttt_linear(chunk: int) -> Callable[[Shape], Case]:
    """Its rate is one of tokens that read, its norm has a slow gain and shift, its answer adds to the norm's input: as much work."""

    def build(s: Shape) -> Case:
        chunk_ttt_linear: Any = import_module("fla.ops.ttt").chunk_ttt_linear
        x, one = operands(s), torch.ones(s.H, s.D, device="cuda", dtype=torch.bfloat16)
        start = weights(MirasSpec.make(**TTT), s)
        return Case(
            lambda q, k, v, w, b, eta, h, hb: chunk_ttt_linear(
                q, k, v, w, b, eta, chunk_size=chunk, initial_state=h, initial_state_bias=hb
            )[0],
            [
                x["q"],
                x["k"],
                x["v"],
                one,
                0 * one,
                x["lr"][..., None].bfloat16(),
                start["w_1"],
                start["b_1"][:, :, None],
            ],
        )

    return build


def attention(s: Shape) -> Case:
    x = operands(s)
    q, k, v = (x[n].transpose(1, 2) for n in "qkv")
    return Case(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v])

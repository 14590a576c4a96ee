"""Entries of the zoo against the plain recurrences of flash-linear-attention, which others wrote and trained with.

Its conventions, and how they are mapped: tensors are ``[B, T, H, D]`` as here (``heads_first`` where they are ``[B, H, T, D]``),
a state is ``[B, H, K, V]`` as here, a decay is a log, and queries are divided by the root of their width, which `scaled`
undoes. What a memory is given behind its ties is what the function is given; the comments say the rest.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from entries import WIDTH, small, tied
from literals._compare import close
from torch import Tensor

import zoo
from miras import AssociativeMemory
from miras.testing import problem
from miras.testing.laws import probe
from miras.ties import Tokens, given, through

with warnings.catch_warnings():  # that there is no GPU
    warnings.simplefilter("ignore")
    pytest.importorskip("fla.ops", reason="needs the extra 'oracles'")


TOLERANCE = 1e-5
Theirs = Callable[[Tokens, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor | None]]
"""From what a memory is given, its first weights and the numbers of its ties to their answers and, if they tell, weights."""


def naive(op: str, file: str = "naive") -> Any:
    """A module of plain recurrences; their annotations are not to be relied on."""
    return importlib.import_module(f"fla.ops.{op}.{file}")


def scaled(x: Tokens) -> Tensor:
    return x.q * WIDTH**0.5


def heads_first(function: Callable[..., Any], *inputs: Tensor, **options: Any) -> tuple[Tensor, Any]:
    o, state = function(*(x.transpose(1, 2) for x in inputs), **options)
    return o.transpose(1, 2), state


def linear_attention(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """The feature map is ours to apply, their scale cancels; their normaliser z is a row, ours the memory's last column."""
    phi_q, phi_k = (torch.nn.functional.elu(z) + 1 for z in (x.q, x.k))
    start = (w[..., :-1], w[..., -1][:, None])
    o, (s, z) = naive("linear_attn").naive_recurrent_linear_attn(
        phi_q, phi_k, x.v[..., :-1], None, start, True, normalize=True
    )
    return o, torch.cat([s, z.transpose(1, 2).mT], -1)


def retention(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, None]:
    """In parallel form, from an empty memory; what the first memory answers is added by hand."""
    kept = x.gates["log_decay"].cumsum(1).exp()[..., None]
    o = naive("retention").naive_retention(*(z.transpose(1, 2) for z in (scaled(x), x.k, x.v))).transpose(1, 2)
    return o + kept * torch.einsum("bthk,bhkv->bthv", x.q, w), None


def scalar_decay(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """A learning rate goes into the value."""
    lr = x.gates["lr"].expand(x.q.shape[:3])[..., None]
    return naive("simple_gla").naive_recurrent_simple_gla(
        scaled(x), x.k, lr * x.v, x.gates["log_decay"], initial_state=w
    )


def channel_decay(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    return naive("gla").naive_recurrent_gla(scaled(x), x.k, x.v, x.gates["log_decay"], w, True)


def hgrn(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """Their input is the gated one, heads are one row of channels, and the output gate comes after."""
    o, h = naive("hgrn").naive_recurrent_hgrn(
        (x.k * x.v).flatten(2), x.gates["log_decay"].flatten(2), w.flatten(1), True
    )
    return x.q * o.unflatten(-1, x.q.shape[2:]), h.unflatten(-1, w.shape[1:])


def rwkv6(x: Tokens, w: Tensor, learned: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    inputs = (scaled(x), x.k, x.v, x.gates["log_decay"])
    return heads_first(
        naive("rwkv6", "recurrent_naive").naive_recurrent_rwkv6,
        *inputs,
        u=learned["u"],
        initial_state=w,
        output_final_state=True,
    )


def delta(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    return heads_first(naive("delta_rule").delta_rule_recurrence, scaled(x), x.k, x.v, x.gates["lr"], initial_state=w)


def gated_delta(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    gates = {"beta": x.gates["lr"], "g": x.gates["log_decay"]}
    return naive("gated_delta_rule").naive_recurrent_gated_delta_rule(
        scaled(x), x.k, x.v, **gates, initial_state=w, output_final_state=True
    )


def kda(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    return naive("kda").naive_recurrent_kda(scaled(x), x.k, x.v, x.gates["log_decay"], x.gates["lr"], None, w, True)


def comba(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """They take the feedback key as a whole, and a query that is corrected."""
    p = x.gates["feedback"][..., None] * x.k
    gates = {"beta": x.gates["lr"], "g": x.gates["log_decay"]}
    return naive("comba").naive_recurrent_comba(
        scaled(x), x.k, x.v, p, **gates, initial_state=w, output_final_state=True
    )


def rwkv7(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """As their layer does it: the transition Diag(w) + b a with a = -kappa and b = a kappa, and the write along k~."""
    removed, written = x.k.unbind(-2)
    inputs = (scaled(x), written, x.v[..., 1, :], -removed, x.gates["lr"][..., 0, :] * removed, x.gates["log_decay"])
    return heads_first(naive("generalized_delta_rule.dplr").dplr_recurrence, *inputs, initial_state=w)


def delta_product(x: Tokens, w: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    """The pairs of a token are tokens of their own, and the scale is an argument."""
    steps = [z.transpose(2, 3).flatten(1, 2) for z in (x.k, x.v)]
    beta = x.gates["lr"].transpose(2, 3).flatten(1, 2)
    return naive("gated_delta_product").naive_recurrent_gated_delta_product(
        x.q, *steps, x.gates["log_decay"], beta, 1.0, initial_state=w, num_householder=x.k.shape[3]
    )


THEIRS: dict[str, Theirs] = {
    "linear_attention": linear_attention,
    "retnet": retention,
    "lightning_attention": scalar_decay,
    "gla": channel_decay,
    "mamba2": scalar_decay,
    "hgrn": hgrn,
    "hgrn2": channel_decay,
    "rwkv6": rwkv6,
    "deltanet": delta,
    "gated_deltanet": gated_delta,
    "kda": kda,
    "rwkv7": rwkv7,
    "comba": comba,
    "deltaproduct": delta_product,
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("length", [1, 7, 33])
def test_the_entry_is_theirs(name: str, length: int):
    """Answers, memory, and gradients of every input, in float32."""
    point, ties = small(zoo.spec(name)), zoo.ENTRIES[name].around.ties
    inner, _, numbers = tied(point, ties, length, seed=length)
    inner = replace(inner.map(Tensor.float), state=inner.state.map(Tensor.float))
    numbers = [{n: x.float() for n, x in of_one.items()} for of_one in numbers]
    learned = {n: x for of_one in numbers for n, x in of_one.items()}
    p, leaves = inner.leaves()
    x, core = Tokens(p.q, p.k, p.v, p.gates), AssociativeMemory(point)
    start = next(iter(p.state.memory.values()))

    y, state = through(ties, x, numbers, lambda t: core(*t, p.state))
    o, end = THEIRS[name](given(ties, x, numbers), start, learned)
    got, wanted = {"y": y}, {"y": o}
    if end is not None:
        got["w"], wanted["w"] = next(iter(state.memory.values())), end
    close(got, wanted, TOLERANCE)

    def gradients(of: dict[str, Tensor]) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(probe(of.values()), list(leaves.values()), allow_unused=True)
        return dict(zip(leaves, found, strict=True))

    exact = gradients(wanted)
    scale = max(g.norm().item() for g in exact.values() if g is not None)
    close(gradients(got), exact, TOLERANCE, max(1e-2 * scale, 1e-6))


@pytest.mark.parametrize("length", [1, 7, 33])
def test_mesa_is_theirs(length: int):
    """Their ridge is the same for all tokens; they solve the system of every token where we take conjugate gradients."""
    point = small(zoo.spec("mesanet"))
    p = problem(point, length=length, d_key=WIDTH, d_value=WIDTH, seed=length, dtype=torch.float32)
    ridge = 0.25 + torch.rand(p.q.shape[2], WIDTH)
    p, leaves = replace(p, gates={n: p.gates[n] for n in ("lr", "log_decay")}).leaves()
    state = p.state
    y, end = AssociativeMemory(point)(p.q, p.k, p.v, p.gates | {"ridge": ridge.expand_as(p.q)}, state)
    o, second, first = naive("mesa_net").naive_mesa_net_exact(
        p.q, p.k, p.v, p.gates["log_decay"], ridge, p.gates["lr"], state.extra["H"], state.memory["w"]
    )
    got = {"y": y, "H": end.extra["H"], "w": end.memory["w"]}
    wanted = {"y": o, "H": second, "w": first}
    close(got, wanted, TOLERANCE)
    inputs = {n: x for n, x in leaves.items() if not n.startswith("state/")}

    def gradients(of: dict[str, Tensor]) -> dict[str, Tensor | None]:
        return dict(zip(inputs, torch.autograd.grad(probe(of.values()), list(inputs.values())), strict=True))

    close(gradients(got), gradients(wanted), TOLERANCE)

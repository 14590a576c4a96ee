"""The inner algorithms against well-kept optimizers and textbook solutions, step for step, in float64."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD

from miras import AssociativeMemory, MirasSpec
from miras.algorithms import newton_schulz
from miras.algorithms._muon import NS_LACT
from miras.biases import L2, AttentionalBias, Dot, Huber, HuberNorm
from miras.testing import relative

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch_optimizer import QHM, AggMo

I, O = 4, 3
Optimizer = Callable[..., torch.optim.Optimizer]

seeds = st.integers(0, 2**31)
lrs = st.floats(0.01, 0.5)
momenta = st.floats(0.05, 0.95)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    error = relative(got, wanted)
    assert error <= tolerance, f"relative error {error}"


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(k: Tensor, v: Tensor, gates: dict[str, Any], start: Tensor, **fields: Any) -> Tensor:
    """The matrix ``[T, I, O]`` after every token of ``k [T, (N,) I]``: row i of the batch asks for row i of the matrix."""
    usual = {"architecture": "matrix", "bias": "l2", "retention": "none", "chunk_size": 1, "step_bound": None}
    memory = AssociativeMemory(MirasSpec.make(**usual | fields))
    rows = k.shape[-1]
    q = torch.eye(rows, dtype=k.dtype)[:, None, None].expand(rows, len(k), 1, rows)
    k, v = k[None, :, None].expand(rows, *k[:, None].shape), v[None, :, None].expand(rows, *v[:, None].shape)
    y, _ = memory(q, k, v, gates, memory.initial_state({"w": start[None]}, rows, rows, start.shape[1]))
    return y[:, :, 0].transpose(0, 1)


def optimized(make: Optimizer, k: Tensor, v: Tensor, start: Tensor, steps: int) -> Tensor:
    """The matrix ``[T, I, O]`` after every step on half the squared error of a fixed set of pairs."""
    w, seen = start.clone().requires_grad_(), []
    optimizer = make([w])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (k @ w - v).square().sum()).backward()
        optimizer.step()
        seen.append(w.detach().clone())
    return torch.stack(seen)


# --- Linear filters -------------------------------------------------------------------------------------------------

FILTERS: dict[str, Callable[..., tuple[dict[str, Any], Optimizer]]] = {
    "gd": lambda lr, mu, nu: ({}, partial(SGD, lr=lr)),
    "momentum": lambda lr, mu, nu: ({}, partial(SGD, lr=lr, momentum=mu)),
    "nesterov": lambda lr, mu, nu: ({}, partial(SGD, lr=lr, momentum=mu, nesterov=True)),
    "qhm": lambda lr, mu, nu: ({"nu": nu}, partial(QHM, lr=lr, momentum=mu, nu=nu)),
    "aggmo": lambda lr, mu, nu: ({"betas": (0.0, mu, 0.97)}, partial(AggMo, lr=lr, betas=(0.0, mu, 0.97))),
}
"""For a learning rate, a momentum and a mixing weight: fields of our algorithm, and somebody else's optimizer."""


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("pairs", [1, 3])  # one pair: a triangular solve; several: matrix products
@given(lr=lrs, mu=momenta, nu=st.floats(0, 1), steps=st.integers(1, 30), seed=seeds)
def test_a_filter_is_the_optimizer_of_its_name(
    name: str, pairs: int, lr: float, mu: float, nu: float, steps: int, seed: int
):
    fields, make = FILTERS[name](lr, mu, nu)
    k = torch.nn.functional.normalize(normal(seed, pairs * I), dim=0).view(pairs, I)
    v, start = normal(seed + 1, pairs, O), normal(seed + 2, I, O)
    gates = {"lr": lr} | ({"log_momentum": math.log(mu)} if name in ("momentum", "nesterov", "qhm") else {})
    repeated = [x.expand(steps, *(x if pairs > 1 else x[0]).shape) for x in (k, v)]
    got = weights(repeated[0], repeated[1], gates, start, algorithm={"name": name} | fields)
    close(got, optimized(make, k, v, start, steps))


@given(lr=lrs, steps=st.integers(1, 12), seed=seeds)
def test_momentum_of_order_two_chains_two_filters(lr: float, steps: int, seed: int):
    k, v, w = normal(seed, steps, I) / 2, normal(seed + 1, steps, O), normal(seed + 2, I, O)
    mu = torch.sigmoid(normal(seed + 3, steps))
    algorithm = {"name": "momentum", "order": 2}
    gates = {"lr": lr, "log_momentum": mu.log()[None, :, None].expand(I, -1, 1)}
    got = weights(k, v, gates, w, algorithm=algorithm)
    first = second = torch.zeros_like(w)
    for t in range(steps):
        g = torch.outer(k[t], k[t] @ w - v[t])
        first = mu[t] * first + lr * g
        second = mu[t] * second + first
        w = w - second
        close(got[t], w)


@given(taps=st.lists(st.floats(-0.5, 1), min_size=2, max_size=5), lr=lrs, steps=st.integers(1, 12), seed=seeds)
def test_fir_is_a_moving_average_of_stale_gradients(taps: list[float], lr: float, steps: int, seed: int):
    k, v, w = normal(seed, steps, I) / 2, normal(seed + 1, steps, O), normal(seed + 2, I, O)
    got = weights(k, v, {"lr": lr}, w, algorithm={"name": "fir", "taps": taps})
    past: list[Tensor] = []
    for t in range(steps):
        past.insert(0, lr * torch.outer(k[t], k[t] @ w - v[t]))
        w = w - sum(c * g for c, g in zip(taps, past, strict=False))
        close(got[t], w)


# --- Muon -----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_newton_schulz_is_nearly_the_polar_factor(rows: int, columns: int, seed: int, scale: float):
    u, _, vh = torch.linalg.svd(normal(seed, rows, columns), full_matrices=False)
    s = 0.05 + 0.95 * torch.rand(len(vh), generator=torch.Generator().manual_seed(seed)).double()
    rotated = u.mT @ newton_schulz(scale * (u * s) @ vh, steps=5) @ vh.mT
    values = rotated.diagonal()
    close(rotated, torch.diag(values), 1e-10)  # the singular vectors stay, and
    assert ((values > 0.6) & (values < 1.25)).all(), values


def test_newton_schulz_of_nothing_is_nothing():
    nothing = torch.zeros(3, 2, requires_grad=True)
    newton_schulz(nothing, steps=5).sum().backward()
    assert not newton_schulz(nothing, steps=5).any()
    assert nothing.grad is not None and nothing.grad.isfinite().all()


@given(lr=st.floats(0.001, 0.02), mu=momenta, seed=seeds)
def test_muon_is_the_optimizer_in_bfloat16(lr: float, mu: float, seed: int):
    """On a gradient that is well conditioned, for that other iteration amplifies its rounding."""
    steps, start = 4, normal(seed, I, O)
    k, residual = torch.linalg.qr(normal(seed + 1, I, I)).Q, torch.linalg.qr(normal(seed + 2, I, O)).Q
    v = k @ start - residual * torch.linspace(0.5, 1, O)
    make = partial(torch.optim.Muon, lr=lr, momentum=mu, nesterov=False, weight_decay=0.0)
    gates = {"lr": lr * math.sqrt(I / O), "log_momentum": math.log(mu)}  # that optimizer's scale for I > O
    got = weights(k.expand(steps, -1, -1), v.expand(steps, -1, -1), gates, start, algorithm="muon")
    close(got - start, optimized(make, k, v, start, steps) - start, 3e-2)


# --- Second order ---------------------------------------------------------------------------------------------------


@given(steps=st.integers(1, 20), ridge=st.floats(0.1, 10), forget=st.booleans(), seed=seeds)
def test_rls_is_ridge_regression_on_the_whole_past(steps: int, ridge: float, forget: bool, seed: int):
    """The minimiser of the discounted squared errors plus the discounted ``ridge |W - W_0|^2``, after every token."""
    k, v, start = normal(seed, steps, I), normal(seed + 1, steps, O), normal(seed + 2, I, O)
    gamma = torch.sigmoid(normal(seed + 3, steps) + 2) if forget else torch.ones(steps).double()
    gates = {"lr": 1.0, "log_forget": gamma.log()[None, :, None].expand(I, -1, 1)}
    got = weights(k, v, gates, start, algorithm={"name": "newton", "solver": "rls", "ridge": ridge})
    for t in range(steps):
        kept = torch.stack([gamma[i : t + 1].prod() for i in range(t + 2)])  # of the start, then of every token
        root = torch.cat([(ridge * kept[:1]).expand(I), kept[1:]]).sqrt()[:, None]
        x, y = torch.cat([torch.eye(I), k[: t + 1]]), torch.cat([start, v[: t + 1]])
        close(got[t], torch.linalg.lstsq(root * x, root * y).solution, 1e-9)


@pytest.mark.parametrize("retention", ["l2", "none"])
@given(steps=st.integers(1, 20), seed=seeds)
def test_mesa_solves_the_linear_system_of_every_token(retention: str, steps: int, seed: int):
    q, k, v = normal(seed, steps, I), normal(seed + 1, steps, I) / 2, normal(seed + 2, steps, O)
    lr, decay = torch.sigmoid(normal(seed + 3, 2, steps))
    if retention == "none":
        decay = torch.ones_like(decay)
    ridge = 0.5 + torch.nn.functional.softplus(normal(seed + 4, steps, I))
    spec = MirasSpec.make(
        architecture="matrix",
        bias="dot",
        retention=retention,
        algorithm={"name": "newton", "solver": "cg", "iterations": 4 * I},
        chunk_size=1,
        step_bound=None,
    )
    gates = {
        n: g[None, :, None] for n, g in {"lr": lr, "log_decay": decay.log(), "ridge": ridge}.items() if n in spec.gates
    }
    got, _ = AssociativeMemory(spec)(q[None, :, None], k[None, :, None], v[None, :, None], gates)
    h, w = torch.zeros(I, I).double(), torch.zeros(I, O).double()
    for t in range(steps):
        h = decay[t] * h + lr[t] * torch.outer(k[t], k[t])
        w = decay[t] * w + lr[t] * torch.outer(k[t], v[t])
        close(got[0, t, 0], torch.linalg.solve(h + torch.diag(ridge[t]), q[t]) @ w, 1e-9)


# --- Implicit -------------------------------------------------------------------------------------------------------

PROXIMAL: list[AttentionalBias] = [Dot(), L2(), L2(half=False), Huber(), HuberNorm()]
"""Convex and once differentiable: where nothing pulls is the minimum."""


@pytest.mark.parametrize("bias", PROXIMAL, ids=repr)
@given(lr=st.floats(0.01, 1), delta=st.floats(0.05, 2), steps=st.integers(1, 8), seed=seeds)
def test_an_implicit_step_minimises_loss_plus_distance(
    bias: AttentionalBias, lr: float, delta: float, steps: int, seed: int
):
    k, v, before = normal(seed, steps, I), normal(seed + 1, steps, O), normal(seed + 2, I, O)
    gates = {name: torch.tensor(delta, dtype=torch.float64) for name in bias.gates}
    for t, after in enumerate(weights(k, v, {"lr": lr} | gates, before, bias=bias, algorithm="implicit")):
        leaf = after.clone().requires_grad_()
        loss = bias.loss(k[t : t + 1] @ leaf, v[t : t + 1], **gates).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        close((before - after) / lr, slope, 1e-10)
        before = after


# --- Once a chunk ---------------------------------------------------------------------------------------------------


@given(rows=st.integers(2, 8), columns=st.integers(2, 8), seed=seeds)
def test_the_coefficients_of_lact_come_closer_to_the_polar_factor(rows: int, columns: int, seed: int):
    u, _, vh = torch.linalg.svd(normal(seed, rows, columns), full_matrices=False)
    s = 0.05 + 0.95 * torch.rand(len(vh), generator=torch.Generator().manual_seed(seed)).double()
    values = (u.mT @ newton_schulz((u * s) @ vh, 5, NS_LACT) @ vh.mT).diagonal()
    assert ((values > 0.95) & (values < 1.05)).all(), values


@given(lr=lrs, mu=momenta, chunks=st.integers(1, 4), seed=seeds)
def test_a_step_a_chunk_is_the_optimizer_on_the_chunk(lr: float, mu: float, chunks: int, seed: int):
    """Somebody else's momentum, whose gradient is that of all pairs of a chunk, in chunks that repeat."""
    size = 3
    k, v, start = normal(seed, size, I) / 2, normal(seed + 1, size, O), normal(seed + 2, I, O)
    gates = {"lr": lr, "log_momentum": math.log(mu)}
    repeated = [x.repeat(chunks, 1) for x in (k, v)]
    got = weights(repeated[0], repeated[1], gates, start, algorithm="chunk_step", chunk_size=size, read="anchor")
    wanted = torch.cat([start[None], optimized(partial(SGD, lr=lr, momentum=mu), k, v, start, chunks)])
    close(got, wanted[:-1].repeat_interleave(size, 0))

"""Architectures: closed forms against autograd, claims, feature maps, wrapped modules and refusals.

Shapes: B batch, H heads, T tokens; a weight is [B, H, *shape], or [B, H, T, *shape] where every token has its own.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miras.architectures import (
    ACTIVATIONS,
    Architecture,
    FastWeight,
    Tap,
    View,
    architectures,
    from_module,
    generic_tap,
)
from miras.architectures._calculus import ActivationName, layer_norm_tap
from miras.architectures._features import _gaussian

B, H, T = 2, 2, 3


class Shared:
    """The same weights [B, H, *shape] for all tokens."""

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = weights

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name]

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        return d @ self.weights[name].mT

    def vector(self, name: str) -> Tensor:
        return self.weights[name].unsqueeze(2)

    def tensor(self, name: str) -> Tensor:
        return self.weights[name].unsqueeze(2)


class Own:
    """Every token's own weights [B, H, T, *shape]."""

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = weights

    def dense(self, name: str, x: Tensor) -> Tensor:
        return torch.einsum("...i,...io->...o", x, self.weights[name])

    def dense_t(self, name: str, d: Tensor) -> Tensor:
        return torch.einsum("...o,...io->...i", d, self.weights[name])

    def vector(self, name: str) -> Tensor:
        return self.weights[name]

    def tensor(self, name: str) -> Tensor:
        return self.weights[name]


def sequential(d_k: int, d_v: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d_k, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, d_v, bias=False))


def convolution(d_k: int, d_v: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (1, d_k)), nn.Conv1d(1, 2, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(2 * d_k, d_v)
    )


class Scaled(nn.Module):
    """A scalar parameter and a weight that is used twice."""

    def __init__(self, d_k: int, d_v: int):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.inner = nn.Linear(d_k, d_k)
        self.out = nn.Linear(d_k, d_v)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(torch.tanh(self.inner(x)))) * self.scale


def build(name: str, **fields: object) -> Architecture:
    return architectures.build({"name": name, **fields})


SQUARE: list[Architecture] = [
    build("vector"),
    build("mlp"),
    build("mlp", depth=1),
    build("mlp", depth=3, expansion=2, bias=True, affine=True, activation="gelu_tanh"),
    build("mlp", norm=False, activation="silu"),
    build("gated_mlp", expansion=2, residual=True, norm=True, activation="gelu"),
    build("gated_mlp", residual=True, activation="identity"),
    build("gated_residual_mlp", expansion=2),
    build("gated_residual_mlp", depth=3, expansion=1, norm=True, activation="tanh"),
    build("on_features", residual=True),
]
ANY_WIDTHS: list[Architecture] = [
    build("matrix"),
    build("slots", temperature=0.5),
    build("low_rank", rank=2),
    *[build("feature_map", kind=k) for k in ("elu", "relu", "softmax", "polynomial")],
    build("feature_map", kind="taylor", degree=3),
    *[build("feature_map", kind=k, dim=6, seed=3) for k in ("random_fourier", "random_positive")],
    build("mlp", residual=False, bias=True, activation="relu2"),
    build("mlp", residual=False, norm=False, depth=3, expansion=1, activation="relu"),
    build("mlp", residual=False, affine=True, eps=1e-2, activation="tanh"),
    build("gated_mlp"),
    build("gated_mlp", norm=True, activation="gelu_tanh"),
    build("on_features", inner="matrix"),
    build("on_features", map={"name": "feature_map", "kind": "elu"}, inner={"name": "gated_mlp", "expansion": 1}),
]
MODULES: list[Architecture] = [from_module(f) for f in (nn.Linear, sequential, convolution, Scaled)]
CASES = [(a, 4, 4) for a in SQUARE] + [(a, 4, 3) for a in ANY_WIDTHS + MODULES]
each_case = pytest.mark.parametrize("architecture, d_key, d_value", CASES, ids=[str(a) for a, *_ in CASES])
each_view = pytest.mark.parametrize("view", [Shared, Own])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(shapes: dict[str, FastWeight], view: type) -> dict[str, Tensor]:
    lead = (B, H) if view is Shared else (B, H, T)
    scale = {n: math.sqrt(w.shape[0]) if w.kind == "dense" else 1.0 for n, w in shapes.items()}
    return {n: (normal(*lead, *w.shape, seed=i) / scale[n]).requires_grad_() for i, (n, w) in enumerate(shapes.items())}


def everything(tap: Tap, error: Tensor) -> dict[str, Tensor]:
    errors = tap.pull(error)
    parts = {"inputs": tap.inputs, "outputs": tap.outputs, "errors": errors}
    return {"prediction": tap.prediction} | {f"{p}.{n}": x for p, d in parts.items() for n, x in d.items()}


def gradients(values: dict[str, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    total = sum((normal(*x.shape, seed=100 + i) * x).sum() for i, (_, x) in enumerate(sorted(values.items())))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True))


def outer(x: Tensor, d: Tensor) -> Tensor:
    return x[..., :, None] * d[..., None, :]


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_every_registered_architecture_is_here() -> None:
    assert {a.name for a, *_ in CASES} == set(architectures)


@each_view
@each_case
def test_closed_form_is_the_generic_tap(architecture: Architecture, d_key: int, d_value: int, view: type) -> None:
    weights = draw(architecture.shapes(d_key, d_value), view)
    x, error = normal(B, H, T, d_key).requires_grad_(), normal(B, H, T, d_value, seed=1).requires_grad_()
    closed = everything(architecture.tap(view(weights), x), error)
    generic = everything(generic_tap(architecture, view(weights), x), error)
    assert closed.keys() == generic.keys()
    for name in closed:
        same(closed[name], generic[name])
    leaves = [*weights.values(), x, error]
    for a, b in zip(gradients(closed, leaves), gradients(generic, leaves), strict=True):
        same(a, b)


@each_view
@each_case
def test_factors_are_the_gradient_of_every_token(
    architecture: Architecture, d_key: int, d_value: int, view: type
) -> None:
    weights = draw(architecture.shapes(d_key, d_value), view)
    x, error = normal(B, H, T, d_key).requires_grad_(), normal(B, H, T, d_value, seed=1).requires_grad_()
    tap = architecture.tap(view(weights), x)
    factors = {n: d if n not in tap.inputs else outer(tap.inputs[n], d) for n, d in tap.pull(error).items()}
    own = {n: w if view is Own else w[:, :, None].expand(B, H, T, *w.shape[2:]) for n, w in weights.items()}
    y = architecture.forward(Own(own), x)
    true = dict(zip(own, torch.autograd.grad(y, list(own.values()), error, create_graph=True), strict=True))
    same(tap.prediction, y)
    for n in own:
        same(factors[n], true[n])
    leaves = [*weights.values(), x, error]
    for a, b in zip(gradients(factors, leaves), gradients(true, leaves), strict=True):
        same(a, b)


@each_case
def test_own_weights_are_a_loop_over_tokens(architecture: Architecture, d_key: int, d_value: int) -> None:
    weights = draw(architecture.shapes(d_key, d_value), Own)
    x = normal(B, H, T, d_key)
    y = architecture.forward(Own(weights), x)
    assert y.shape == (B, H, T, d_value)
    for t in range(T):
        alone = Shared({n: w[:, :, t] for n, w in weights.items()})
        same(y[:, :, t : t + 1], architecture.forward(alone, x[:, :, t : t + 1]))


@each_case
def test_claims(architecture: Architecture, d_key: int, d_value: int) -> None:
    shapes = architecture.shapes(d_key, d_value)
    weights, x = draw(shapes, Shared), normal(B, H, T, d_key)
    assert architecture.has_matrices == any(w.kind == "dense" for w in shapes.values())
    if architecture.is_linear:
        (name,) = shapes
        same(architecture.forward(Shared(weights), x), architecture.features(x) @ weights[name])
    for w in shapes.values():  # a gate per channel must fit the axis it acts on
        assert not w.reads_key or w.shape[0] == d_key
        assert not w.writes_value or w.shape[-1] == d_value
    initial = architecture.init(d_key, d_value, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert {n: (w.shape, w.dtype) for n, w in initial.items()} == {
        n: (w.shape, torch.float64) for n, w in shapes.items()
    }
    again = architecture.init(d_key, d_value, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert all(w.equal(again[n]) for n, w in initial.items())


@pytest.mark.parametrize("architecture", SQUARE, ids=str)
def test_closed_forms_survive_checkpointing(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vjp", "grad", "vmap", "functional_call"):
        monkeypatch.setattr(torch.func, name, None)
    weights = draw(architecture.shapes(4, 4), Shared)
    x = normal(B, H, T, 4).requires_grad_()

    def inner(x: Tensor) -> Tensor:
        tap = architecture.tap(Shared(weights), x)
        errors = tap.pull(tap.prediction - 1)
        return torch.cat([d.flatten() for d in errors.values()]).square().sum()

    leaves = [*weights.values(), x]
    kept = torch.autograd.grad(inner(x), leaves, allow_unused=True)
    again = torch.autograd.grad(checkpoint(inner, x, use_reentrant=False), leaves, allow_unused=True)
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_activations_are_differentiable_again(name: ActivationName) -> None:
    def both(z: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        h, pull = ACTIVATIONS[name].tap(z)
        return h, pull(d)

    z, d = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    h, pulled = both(z, d)
    same(h, ACTIVATIONS[name].value(z))
    same(pulled, torch.autograd.grad(h, z, d, retain_graph=True)[0])
    assert torch.autograd.gradcheck(both, (z, d))
    assert torch.autograd.gradgradcheck(both, (z, d))


def test_layer_norm_is_differentiable_again() -> None:
    def both(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        y, pull = layer_norm_tap(x, 1e-2)
        return y, pull(d)

    inputs = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


def test_the_mlp_is_the_formula_of_the_paper() -> None:
    weights, x = {"w_1": normal(4, 16), "w_2": normal(16, 4, seed=1)}, normal(1, 1, T, 4, seed=2)
    y = architectures.build("mlp").forward(Shared(weights), x)
    same(y, x + F.layer_norm(F.gelu(x @ weights["w_1"]) @ weights["w_2"], (4,), eps=1e-2))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_polynomial_features_have_their_kernels(degree: int) -> None:
    q, k = normal(5, 3), normal(6, 3, seed=1)
    dot = q @ k.mT
    kernels = {
        "polynomial": (1 + dot) ** degree,
        "taylor": sum(dot**i / math.factorial(i) for i in range(degree + 1)),
    }
    for kind, kernel in kernels.items():
        phi = build("feature_map", kind=kind, degree=degree)
        assert phi.features(q).shape[-1] == phi.shapes(3, 2)["w"].shape[0] == math.comb(3 + degree, degree)
        torch.testing.assert_close(phi.features(q) @ phi.features(k).mT, kernel)


@pytest.mark.parametrize("kind", ["random_fourier", "random_positive"])
def test_random_features_approach_their_kernels(kind: str) -> None:
    q, k = F.normalize(normal(5, 8), dim=-1), F.normalize(normal(6, 8, seed=1), dim=-1)
    exact = torch.exp(q @ k.mT) if kind == "random_positive" else torch.exp(-0.5 * torch.cdist(q, k).square())

    def worst(dim: int, seed: int) -> float:
        phi = build("feature_map", kind=kind, dim=dim, seed=seed)
        return (phi.features(q) @ phi.features(k).mT - exact).abs().max().item()

    errors = [worst(16384, seed) for seed in range(3)]
    assert max(errors) < 0.1 and len(set(errors)) == 3
    assert worst(16384, 0) == errors[0] < worst(16, 0)


def test_random_frequencies_are_standard_normal() -> None:
    z = _gaussian(normal(1, 64), 256, seed=0)
    assert z.abs().max() < 5
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert z.pow(power).mean().item() == pytest.approx(moment, abs=0.25)
    assert z.corrcoef().fill_diagonal_(0).abs().max() < 0.3 and z.mT.corrcoef().fill_diagonal_(0).abs().max() < 0.6


def test_vectors_and_slots_are_the_plain_formulas() -> None:
    x = normal(1, 1, T, 4)
    w = normal(1, 1, 4, seed=1)
    same(architectures.build("vector").forward(Shared({"w": w}), x), w * x)
    s = normal(1, 1, 4, 3, seed=1)
    same(build("slots", temperature=0.5).forward(Shared({"slots": s}), x), torch.softmax(2 * x, -1) @ s)


def test_initial_matrices_keep_the_variance() -> None:
    weights = build("mlp", bias=True, affine=True).init(64, 64, generator=torch.Generator().manual_seed(0))
    assert weights["w_2"].std().item() == pytest.approx(1 / 16, rel=0.05)
    assert weights["w_1"].std().item() == pytest.approx(1 / 8, rel=0.05)
    assert weights["gain"].equal(torch.ones(64))
    assert not weights["b_1"].any() and not weights["shift"].any()


@pytest.mark.parametrize("view", [Shared, Own])
def test_a_wrapped_linear_layer_is_a_matrix_and_a_bias(view: type) -> None:
    module, x = from_module(nn.Linear), normal(B, H, T, 4)
    weights = draw(module.shapes(4, 3), view)
    by_hand = view(weights | {"weight": weights["weight"].mT})
    same(module.forward(view(weights), x), by_hand.dense("weight", x) + by_hand.vector("bias"))


def test_a_wrapped_module_keeps_its_initialisation_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(0)
    module = sequential(4, 3)
    torch.manual_seed(0)
    memory = from_module(sequential)
    memory.shapes(4, 3)
    initial = memory.init(4, 3)
    assert initial.keys() == dict(module.named_parameters()).keys()
    assert all(initial[n].equal(p) for n, p in module.named_parameters())
    before = torch.get_rng_state()
    memory.init(4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.get_rng_state().equal(before)


def test_one_wrapped_module_serves_several_widths() -> None:
    memory = from_module(sequential)
    for d_key, d_value in ((4, 3), (4, 2), (5, 3), (4, 3)):
        weights = draw(memory.shapes(d_key, d_value), Shared)
        assert memory.forward(Shared(weights), normal(B, H, T, d_key)).shape == (B, H, T, d_value)
    with pytest.raises(ValueError, match="call shapes"):
        from_module(sequential).forward(Shared({}), normal(B, H, T, 4))


def test_wrapped_modules_are_components() -> None:
    memory = from_module(sequential)
    assert memory == from_module(sequential) != from_module(convolution)
    assert hash(memory) == hash(from_module(sequential))
    assert repr(memory) == "from_module(sequential)"
    assert re.fullmatch(
        r"from_module\(<lambda at test_architectures.py:\d+>\)", repr(from_module(lambda k, v: nn.Linear(k, v)))
    )
    memory.shapes(4, 3)
    for copied in (pickle.loads(pickle.dumps(memory)), copy.deepcopy(memory)):
        assert copied == memory and copied.shapes(4, 3) == memory.shapes(4, 3)


def pooled(d_k: int, d_v: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d_k, 12), nn.Unflatten(-1, (1, 12)), nn.AdaptiveAvgPool1d(d_v), nn.Flatten())


REFUSED: list[tuple[Callable[[int, int], nn.Module], str]] = [
    (lambda k, v: nn.Sequential(nn.Linear(k, v), nn.Dropout(0.1)), "leave dropout out"),
    (lambda k, v: nn.TransformerEncoderLayer(k, 1, 8), "leave dropout out"),
    (lambda k, v: nn.Sequential(nn.Linear(k, v), nn.BatchNorm1d(v)), "buffers 1.running_mean"),
    (lambda k, v: nn.Identity(), "no parameters"),
    (lambda k, v: nn.Linear(k, v + 1), r"map \[1, 4\] to \[1, 3\]; it answered \[4\]"),
    (lambda k, v: nn.LSTM(k, v), "could not map one token"),
    (lambda k, v: nn.Linear(k + 1, v), "could not map one token"),
]


@pytest.mark.parametrize("factory, reason", REFUSED, ids=range(len(REFUSED)))
def test_modules_that_cannot_be_memories(factory: Callable[[int, int], nn.Module], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_module(factory).shapes(4, 3)
    with pytest.raises(ValueError, match=reason):
        from_module(factory).init(4, 3)


def test_modules_whose_weights_do_not_show_the_width_of_the_value() -> None:
    memory = from_module(pooled)
    memory.shapes(4, 3)
    with pytest.raises(ValueError, match="nothing tells the two apart"):
        memory.shapes(4, 2)
    assert from_module(lambda k, v: nn.Sequential(nn.Linear(k, v), nn.Dropout(0.0))).shapes(4, 3)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"name": "mlp", "depth": 0}, "depth must be a whole number >= 1; got 0"),
        ({"name": "mlp", "expansion": 1.5}, "expansion must be a whole number"),
        ({"name": "mlp", "activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"name": "mlp", "eps": 0.0}, "eps must be positive"),
        ({"name": "mlp", "norm": False, "affine": True}, "affine=True has no effect with norm=False"),
        ({"name": "mlp", "norm": False, "eps": 1e-5}, "eps=1e-05 has no effect"),
        ({"name": "mlp", "depth": 1, "activation": "relu"}, "no effect at depth=1"),
        ({"name": "gated_mlp", "eps": 1e-5}, "eps=1e-05 has no effect"),
        ({"name": "gated_residual_mlp", "depth": True}, "depth must be a whole number"),
        ({"name": "low_rank", "rank": 0}, "rank must be"),
        ({"name": "slots", "temperature": -1.0}, "temperature must be positive"),
        ({"name": "feature_map", "kind": "tailor"}, "did you mean 'taylor'"),
        ({"name": "feature_map", "degree": 3}, "degree=3 has no effect with kind='elu'"),
        ({"name": "feature_map", "kind": "taylor", "dim": 64}, "dim=64 has no effect"),
        ({"name": "feature_map", "kind": "random_fourier", "dim": 7}, "dim must be even"),
        ({"name": "feature_map", "kind": "random_positive", "seed": -1}, "seed must be"),
    ],
)
def test_bad_fields(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        architectures.build(fields)


@pytest.mark.parametrize("architecture", SQUARE, ids=str)
def test_square_memories_refuse_other_widths(architecture: Architecture) -> None:
    with pytest.raises(ValueError, match="d_key=4 and d_value=3: pass"):
        architecture.shapes(4, 3)


def test_a_weight_used_twice_is_refused() -> None:
    @dataclass(frozen=True)
    class Twice(Architecture):
        def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
            return {"w": FastWeight((d_key, d_value))}

        def forward(self, w: View, x: Tensor) -> Tensor:
            return w.dense("w", w.dense("w", x))

    with pytest.raises(ValueError, match="used twice"):
        Twice().tap(Shared({"w": normal(B, H, 4, 4)}), normal(B, H, T, 4))


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"inner": "vector"}, "inner must be a matrix, low_rank, mlp or gated_mlp"),
        ({"inner": "mlp"}, "without residual"),
        ({"map": "matrix"}, "map must be a feature_map"),
    ],
)
def test_a_memory_on_features_refuses(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build("on_features", **fields)


def test_matrices_that_read_the_key_read_its_features() -> None:
    shapes = build("on_features", map={"name": "feature_map", "kind": "taylor", "degree": 2}).shapes(4, 3)
    assert shapes["w_1"].shape == (15, 16) and shapes["w_2"].shape == (16, 3)

"""The attentional biases: claims, limits, formulas of the paper, and errors of every size."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from miras.biases import (
    L1,
    L2,
    AttentionalBias,
    Cosine,
    Feedback,
    Huber,
    HuberNorm,
    LogCosh,
    Lp,
    ValueShift,
    Yaad,
    biases,
)

T, D = 6, 5
OPTIONS: dict[str, list[dict[str, object]]] = {
    "l1": [{"smooth": "loss"}],
    "l2": [{"half": False}],
    "lp": [{"smooth": "loss"}, {"p": 1.5, "smooth": "loss"}, {"p": 1.0}, {"p": 4.0}],
    "huber": [{"per": "value"}],
    "yaad": [{"norm": "rms", "half": False}, {"norm": "max", "per": "value"}, {"smooth": "loss"}],
    "kl": [{"temperature": 0.3}],
    "cosine": [{"eps": 1e-6}],
}
COMPONENTS = [biases[n](**f) for n in biases for f in [{}, *OPTIONS.get(n, [])]]

every = pytest.mark.parametrize("bias", COMPONENTS, ids=str)


def claiming(claim: str):
    """Parametrises over the components that make a claim."""
    return pytest.mark.parametrize("bias", [b for b in COMPONENTS if getattr(b, claim)], ids=str)


def draw(bias: AttentionalBias, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Prediction, target and gates; errors lie on both sides of every threshold."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    sizes = torch.logspace(-1.5, 1.0, T, dtype=dtype)[:, None]
    target = randn(2, T, D)
    gates = {name: gate(0.5 * randn(2, T, D if gate.per == "value" else 1)) for name, gate in bias.gates.items()}
    return target + sizes * randn(2, T, D), target, gates


def initial_gates(bias: AttentionalBias) -> dict[str, Tensor]:
    return {n: gate(torch.zeros(1, dtype=torch.float64)) for n, gate in bias.gates.items()}


def gradient(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The gradient of the sum, zero where there is none."""
    return list(torch.autograd.grad(output.sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True))


# claims ------------------------------------------------------------------------------------------


def test_the_eleven_are_registered():
    wanted = "dot l2 l1 lp huber huber_norm yaad value_shift log_cosh kl cosine"
    assert set(wanted.split()) <= set(biases)


@every
def test_is_a_value(bias: AttentionalBias):
    assert biases.build(biases.to_dict(bias)) == bias
    assert hash(dataclasses.replace(bias)) == hash(bias)
    assert eval(repr(bias), {type(bias).__name__: type(bias)}) == bias


@every
def test_shapes_and_leading_dimensions(bias: AttentionalBias):
    p, v, gates = draw(bias)
    loss, residual = bias.loss(p, v, **gates), bias.residual(p, v, **gates)
    assert loss.shape == (2, T) and residual.shape == p.shape
    first = {n: g[0] for n, g in gates.items()}
    torch.testing.assert_close(bias.loss(p[0], v[0], **first), loss[0])
    torch.testing.assert_close(bias.residual(p[0], v[0], **first), residual[0])


@claiming("residual_is_gradient")
def test_residual_is_the_gradient_of_the_loss(bias: AttentionalBias):
    for seed in range(5):
        p, v, gates = draw(bias, seed)
        p.requires_grad_()
        (expected,) = gradient(bias.loss(p, v, **gates), p)
        torch.testing.assert_close(bias.residual(p, v, **gates), expected, rtol=1e-11, atol=1e-12)
        default = AttentionalBias.residual(bias, p, v, **gates)
        torch.testing.assert_close(default, expected, rtol=1e-11, atol=1e-12)


@every
def test_residual_is_differentiable(bias: AttentionalBias):
    p, v, gates = draw(bias)
    inputs = [p[:1], v[:1], *(g[:1] for g in gates.values())]

    def residual(p: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        return bias.residual(p, v, **dict(zip(gates, values, strict=True)))

    leaves = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(residual, leaves, eps=1e-7, atol=1e-4, rtol=1e-4)
    rerun = checkpoint(residual, *leaves, use_reentrant=False)
    assert isinstance(rerun, Tensor)
    for a, b in zip(gradient(rerun, *leaves), gradient(residual(*leaves), *leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@claiming("residual_is_affine")
def test_affine_residual(bias: AttentionalBias):
    p, v, gates = draw(bias)
    slope, offset = bias.affine(v, **gates)
    assert slope.shape == (2, T, 1) and offset.shape == v.shape
    torch.testing.assert_close(slope * p + offset, bias.residual(p, v, **gates))
    assert slope.max() <= bias.curvature
    if not bias.gates:
        assert bias.curvature == slope.max()


@claiming("residual_is_constant")
def test_constant_residual(bias: AttentionalBias):
    p, v, gates = draw(bias)
    assert torch.equal(bias.residual(p, v, **gates), bias.residual(p * 3 - 1, v, **gates))


@every
def test_no_claim_no_closed_form(bias: AttentionalBias):
    p, v, gates = draw(bias)
    if not bias.residual_is_affine:
        with pytest.raises(NotImplementedError, match=bias.name):
            bias.affine(v, **gates)
    if not bias.has_implicit:
        with pytest.raises(NotImplementedError, match=bias.name):
            bias.implicit(p, v, torch.ones(1), **gates)


@every
def test_a_unit_error_writes_at_most_the_curvature(bias: AttentionalBias):
    if bias.residual_is_constant or isinstance(bias, Feedback):
        pytest.skip("its residual is not one of the error")
    g = torch.Generator().manual_seed(0)
    error = 2 * torch.rand(500, D, generator=g, dtype=torch.float64) - 1
    for prediction in (torch.randn(500, D, generator=g, dtype=torch.float64), 0 * error):
        residual = bias.residual(prediction, prediction - error, **initial_gates(bias))
        assert residual.abs().max() <= bias.curvature * (1 + 1e-6)


# the proximal step -------------------------------------------------------------------------------


def sharpened(bias: AttentionalBias) -> AttentionalBias:
    """The same bias with hardly any smoothing, as its proximal step is that of the sharp loss."""
    match bias:
        case L1(smooth="gradient"):
            return dataclasses.replace(bias, nu=1e7)
        case L1() | ValueShift():
            return dataclasses.replace(bias, eps=1e-18)
        case _:
            return bias


@claiming("has_implicit")
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.floats(1e-3, 30))
def test_implicit_solves_the_proximal_step(bias: AttentionalBias, seed: int, step: float):
    bias = sharpened(bias)
    p, v, gates = draw(bias, seed)
    s = torch.full((2, T, 1), step, dtype=p.dtype)
    d = bias.implicit(p, v, s, **gates)
    landed = p - s * d
    has_kink = isinstance(bias, L1 | ValueShift)  # where any subgradient will do
    checked = (landed - v).abs() > (1e-3 if has_kink else -1)
    torch.testing.assert_close(d[checked], bias.residual(landed, v, **gates)[checked])

    def objective(u: Tensor) -> Tensor:
        return bias.loss(u, v, **gates) + (u - p).square().sum(-1) / (2 * step)

    for size in (1e-2, 1.0):
        near = landed + size * torch.randn(20, *p.shape, dtype=p.dtype)
        assert (objective(landed) <= objective(near) + 1e-5).all()


@claiming("has_implicit")
def test_implicit_at_zero_step_is_explicit(bias: AttentionalBias):
    p, v, gates = draw(bias)
    p[0, 0] = v[0, 0]
    zero = torch.zeros(2, T, 1, dtype=p.dtype, requires_grad=True)
    d = bias.implicit(p, v, zero, **gates)
    torch.testing.assert_close(d, bias.residual(p, v, **gates), rtol=0, atol=0)
    assert not d.requires_grad or gradient(d, zero)[0].isfinite().all()


def test_implicit_l1_is_the_clip():
    p, v, _ = draw(L1())
    for step in (0.01, 0.5, 3.0):
        d = L1(nu=1e9).implicit(p, v, torch.full((2, T, 1), step, dtype=p.dtype))
        torch.testing.assert_close(d, ((p - v) / step).clip(-1, 1))


# extreme inputs ----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_for_zero_and_huge_errors(bias: AttentionalBias, dtype: torch.dtype):
    ones = torch.ones(D, dtype=dtype)
    noise = torch.linspace(-1, 1, D, dtype=dtype)
    pairs = [
        (0 * ones, 0 * ones),
        (noise, noise),
        (0 * ones, noise),
        (noise, 0 * ones),
        (noise + 1e-7, noise),
        (1e-20 * noise, 0 * ones),
        (1e-13 * ones, 0 * ones),
        (1e4 * noise, noise),
        (1e4 * ones, -1e4 * noise),
        (-1e4 * noise, 0 * ones),
    ]
    prediction, target = (torch.stack(x) for x in zip(*pairs, strict=True))
    for level in (-120.0, -15.0, 0.0, 15.0):  # a softplus gate can underflow to zero
        gates = {n: gate(torch.full((1,), level, dtype=dtype)) for n, gate in bias.gates.items()}
        inputs = [x.clone().requires_grad_() for x in (prediction, target, *gates.values())]
        gates = dict(zip(gates, inputs[2:], strict=True))
        p, v = inputs[:2]
        outputs = [bias.loss(p, v, **gates), bias.residual(p, v, **gates)]
        if bias.has_implicit:
            for step in (0.0, 1e-6, 1.0, 1e4):
                s = torch.full((len(pairs), 1), step, dtype=dtype)
                outputs.append(bias.implicit(p, v, s, **gates))
        for output in outputs:
            assert output.isfinite().all()
            for first in gradient(output, *inputs):
                assert first.isfinite().all()
                if first.requires_grad:
                    assert all(second.isfinite().all() for second in gradient(first, *inputs))


@every
def test_float32_agrees_with_float64(bias: AttentionalBias):
    p, v, gates = draw(bias)
    low = {n: g.float() for n, g in gates.items()}
    residual = bias.residual(p.float(), v.float(), **low)
    assert residual.dtype == torch.float32
    torch.testing.assert_close(residual.double(), bias.residual(p, v, **gates), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_log_cosh_is_stable(size: float):
    p = torch.tensor([[size], [-size]], dtype=torch.float64)
    exact = math.log(math.cosh(size)) if size < 100 else size - math.log(2)
    loss = LogCosh().loss(p, torch.zeros_like(p))
    torch.testing.assert_close(loss, torch.full_like(loss, exact), rtol=1e-9, atol=1e-15)


# formulas and limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("smooth", ["gradient", "loss"])
def test_lp_is_equation_11(p: float, smooth: str):
    sharp = {"nu": 1e9} if smooth == "gradient" else {}
    y, v, _ = draw(L2())
    r = y - v
    bias = Lp(p, smooth=smooth, eps=1e-16, **sharp)  # type: ignore[arg-type]
    expected = p * torch.sign(r) * r.abs() ** (p - 1)
    torch.testing.assert_close(bias.residual(y, v), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias.loss(y, v), (r.abs() ** p).sum(-1), rtol=1e-6, atol=1e-6)


def test_surrogate_gradient_and_surrogate_loss_of_remark_5():
    y, v, _ = draw(L2())
    r = y - v
    surrogate = 3 * torch.tanh(7 * r) * (r**2 + 1e-3)
    torch.testing.assert_close(Lp(3, nu=7, eps=1e-3).residual(y, v), surrogate)
    gradient_of_loss = 3 * r * (r**2 + 1e-3) ** 0.5
    torch.testing.assert_close(Lp(3, smooth="loss", eps=1e-3).residual(y, v), gradient_of_loss)
    assert not Lp(3).residual_is_gradient and Lp(3, smooth="loss").residual_is_gradient
    torch.testing.assert_close(L1().residual(y, v), torch.tanh(10 * r))


def test_lp_of_2_is_l2_without_half():
    y, v, _ = draw(L2())
    torch.testing.assert_close(Lp(2, smooth="loss").residual(y, v), L2(half=False).residual(y, v), rtol=1e-14, atol=0)
    assert Lp(2).curvature == L2(half=False).curvature


def test_huber_is_equations_13_and_14():
    bias = Huber(per="value")
    y, v, gates = draw(bias)
    r, delta = y - v, gates["delta"]
    quadratic = (r.abs() <= delta).to(r.dtype)
    assert 0 < quadratic.mean() < 1
    loss = quadratic * r**2 / 2 + (1 - quadratic) * delta * (r.abs() - delta / 2)
    torch.testing.assert_close(bias.loss(y, v, **gates), loss.sum(-1))
    residual = r * quadratic + delta * torch.sign(r) * (1 - quadratic)
    torch.testing.assert_close(bias.residual(y, v, **gates), residual)


def test_huber_norm_is_equation_15():
    bias = HuberNorm()
    y, v, gates = draw(bias)
    r, delta = y - v, gates["delta"]
    norm = r.norm(dim=-1, keepdim=True)
    assert 0 < (norm <= delta).double().mean() < 1
    loss = torch.where(norm <= delta, norm**2 / 2, delta * (norm - delta / 2))
    torch.testing.assert_close(bias.loss(y, v, **gates), loss[..., 0])
    residual = torch.where(norm <= delta, r, delta * r / norm)
    torch.testing.assert_close(bias.residual(y, v, **gates), residual)


@pytest.mark.parametrize("bias", [Huber(), HuberNorm(), Yaad()], ids=str)
def test_infinite_threshold_is_half_l2(bias: AttentionalBias):
    y, v, _ = draw(bias)
    delta = torch.full((1,), 1e6, dtype=y.dtype)
    torch.testing.assert_close(bias.residual(y, v, delta=delta), L2().residual(y, v))
    torch.testing.assert_close(bias.loss(y, v, delta=delta), L2().loss(y, v))


def test_value_shift_is_the_worst_case_of_equation_17():
    bias = ValueShift(eps=1e-18)
    y, v, gates = draw(bias)
    shift, r = gates["shift"], y - v
    worst = -shift * r / r.norm(dim=-1, keepdim=True)
    loss = bias.loss(y, v, **gates)
    torch.testing.assert_close(loss, L2().loss(y, v + worst))
    torch.testing.assert_close(bias.residual(y, v, **gates), y - (v + worst))
    other = torch.randn(50, *y.shape, dtype=y.dtype)
    other = shift * other / other.norm(dim=-1, keepdim=True)
    assert (L2().loss(y, v + other) <= loss + 1e-12).all()


def test_value_shift_of_zero_is_half_l2():
    y, v, _ = draw(L2())
    zero, step = torch.zeros(1, dtype=y.dtype), torch.full((1,), 0.7, dtype=y.dtype)
    torch.testing.assert_close(ValueShift().residual(y, v, shift=zero), L2().residual(y, v))
    torch.testing.assert_close(ValueShift().loss(y, v, shift=zero), L2().loss(y, v))
    torch.testing.assert_close(ValueShift().implicit(y, v, step, shift=zero), L2().implicit(y, v, step))


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("norm", ["l2", "rms", "max"])
def test_yaad_is_the_switching_rule_of_equation_16(half: bool, norm: str):
    bias = Yaad(half=half, norm=norm, nu=1e9)  # type: ignore[arg-type]
    y, v, gates = draw(bias)
    r, delta = y - v, gates["delta"]
    size = {
        "l2": r.norm(dim=-1, keepdim=True),
        "rms": r.norm(dim=-1, keepdim=True) / math.sqrt(D),
        "max": r.norm(dim=-1, keepdim=True, p=math.inf),
    }[norm]
    below = (size <= delta).expand_as(r)
    assert 0 < below.double().mean() < 1
    residual = bias.residual(y, v, **gates)
    torch.testing.assert_close(residual[below], L2(half=half).residual(y, v)[below])
    torch.testing.assert_close(residual[~below], (delta * torch.sign(r))[~below])


@pytest.mark.parametrize(("norm", "jump"), [("l2", math.sqrt(D)), ("rms", 1.0)])
def test_yaad_jumps_at_the_threshold(norm: str, jump: float):
    delta = torch.full((1,), 0.5, dtype=torch.float64)
    r = torch.linspace(1, 2, D, dtype=torch.float64)
    r = delta * r / r.norm() * (math.sqrt(D) if norm == "rms" else 1.0)
    zero = torch.zeros_like(r)
    bias = Yaad(norm=norm, nu=1e9)  # type: ignore[arg-type]
    assert not bias.residual_is_gradient
    below = bias.residual((1 - 1e-9) * r, zero, delta=delta).norm()
    above = bias.residual((1 + 1e-9) * r, zero, delta=delta).norm()
    assert above / below == pytest.approx(jump, rel=1e-6)


def test_kl_ignores_a_constant_and_cosine_almost_a_length():
    y, v, _ = draw(L2())
    kl = biases["kl"]()
    torch.testing.assert_close(kl.loss(y + 3, v - 2), kl.loss(y, v))
    torch.testing.assert_close(kl.residual(y, v).sum(-1), torch.zeros(2, T, dtype=y.dtype))
    cosine = Cosine(eps=1e-12)
    expected = 1 - torch.nn.functional.cosine_similarity(y, v, dim=-1)
    torch.testing.assert_close(cosine.loss(y, v), expected)
    torch.testing.assert_close(cosine.loss(5 * y, v), expected)


# bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lp", {"p": 0.5}, "p >= 1"),
        ("lp", {"p": math.nan}, "p >= 1"),
        ("lp", {"smooth": "loss", "nu": 5.0}, "does not use nu"),
        ("l1", {"smooth": "tanh"}, "smooth"),
        ("l1", {"nu": 0.0}, "nu > 0"),
        ("l1", {"eps": 1e-3}, "does not use eps"),
        ("huber", {"delta": 0.0}, "delta > 0"),
        ("huber", {"per": "key"}, "per"),
        ("huber_norm", {"delta": math.inf}, "finite delta"),
        ("yaad", {"norm": "l1"}, "norm"),
        ("yaad", {"delta": -1.0}, "delta > 0"),
        ("yaad", {"per": "key"}, "per"),
        ("value_shift", {"shift": 0.0}, "shift > 0"),
        ("value_shift", {"eps": 0.0}, "eps > 0"),
        ("kl", {"temperature": 0.0}, "temperature > 0"),
        ("cosine", {"eps": 2.0}, "eps in"),
    ],
)
def test_fields_are_checked(name: str, fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message) as error:
        biases.build({"name": name, **fields})
    assert name in str(error.value)

"""Every retention is the formula of its paper, and every claim it makes is true."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from miras.retentions import (
    Context,
    ElasticNet,
    Exponentiated,
    FDivergence,
    KLDecay,
    L2Decay,
    Logistic,
    Lq,
    NoRetention,
    Orthogonal,
    Retention,
    Tanh,
    WeightNorm,
    retentions,
)

INSTANCES: list[Retention] = [
    NoRetention(),
    L2Decay(),
    L2Decay(per="key", gradient_at="decayed"),
    Lq(),
    Lq(q=2.0),
    Lq(q=3.0, norm="mean", link_at="chunk"),
    Lq(q=4.0, form="exact"),
    Lq(q=2.5, form="exact", norm="mean"),
    KLDecay(),
    KLDecay(axis="out", scale=3.0),
    KLDecay(axis="all", scale="size"),
    FDivergence(),
    FDivergence(divergence="chi2", axis="out"),
    FDivergence(divergence="hellinger", axis="all", scale="size"),
    Logistic(),
    Tanh(),
    Exponentiated(),
    ElasticNet(),
    ElasticNet(form="proximal"),
    ElasticNet(smooth=True),
    ElasticNet(form="proximal", smooth=True),
    WeightNorm(),
    WeightNorm(axis="out", form="pre"),
    WeightNorm(axis="all", link_at="chunk"),
    WeightNorm(decays=False),
    Orthogonal(),
]
DECAYING = set(retentions) - {"none", "f_divergence", "orthogonal"}

every = pytest.mark.parametrize("retention", INSTANCES, ids=repr)
divergences = pytest.mark.parametrize("divergence", ["reverse_kl", "chi2", "hellinger"])


def problem(
    retention: Retention, weight=(4, 3), lead=(2,), scale=0.5, dtype=torch.float64, seed=0
) -> tuple[Tensor, Context]:
    """An accumulator ``scale`` away from its anchor, and the context that goes with it."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(*lead, *weight, generator=g, dtype=dtype)  # noqa: E731
    dims = len(weight)
    anchor = retention.initial(draw(), dims)
    threshold = None
    if "threshold" in retention.gates:
        threshold = torch.rand(*lead, *[1] * dims, generator=g, dtype=dtype)
    context = Context(dims, anchor, retention.start(anchor, dims), threshold)
    return anchor - scale * draw(), context


def after_commit(retention: Retention, memory: Tensor, context: Context) -> tuple[Tensor, Context]:
    """Where the next chunk starts: what accumulated has been applied."""
    committed = retention.commit(memory, context)
    threshold = context.threshold
    if retention.accumulates_threshold and threshold is not None:
        threshold = torch.zeros_like(threshold)
    return committed, context._replace(anchor=committed, threshold=threshold)


def slices(retention: KLDecay | FDivergence | WeightNorm) -> tuple[int, ...]:
    return {"in": (-2,), "out": (-1,), "all": (-2, -1)}[retention.axis]


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_every_retention_is_tested():
    assert {r.name for r in INSTANCES} == set(retentions)
    assert {r.name for r in INSTANCES if "log_decay" in r.gates} == DECAYING
    for r in INSTANCES:
        assert retentions.build(retentions.to_dict(r)) == r and hash(r) == hash(r)


# The formulas of the papers


def literal(r: Retention, a: Tensor, context: Context) -> Tensor:
    """One matrix at a time, straight from the page."""
    gamma = torch.as_tensor(0.0 if context.threshold is None else context.threshold)
    match r:
        case NoRetention() | L2Decay():
            return a
        case Lq(q=q, form=form):
            powers = a.abs() ** q
            norm = ((powers.sum() if r.norm == "sum" else powers.mean()) + r.eps**q) ** (1 / q)
            if form == "paper":
                return a / norm ** (q - 2)
            return a.sign() * a.abs() ** (q - 1) / norm ** (q - 2) / (q - 1)
        case KLDecay(scale=scale):
            c = a.numel() if scale == "size" else scale  # instances with "size" have one slice
            return c * a.exp() / a.exp().sum(slices(r), keepdim=True)
        case Logistic():
            return 1 / (1 + (-a).exp())
        case Tanh():
            return (a.exp() - (-a).exp()) / (a.exp() + (-a).exp())
        case Exponentiated():
            return a.exp()
        case ElasticNet(smooth=True):
            return a.abs() * (a / gamma).arctan() / (math.pi / 2)
        case ElasticNet():
            return a.sign() * torch.maximum(a.abs() - gamma, torch.zeros_like(a))
        case WeightNorm():
            start, dims = context.anchor, slices(r)  # the problem starts at its anchor
            return start.norm(dim=dims, keepdim=True) * a / a.norm(dim=dims, keepdim=True)
        case Orthogonal():
            return torch.stack([row / row.norm() for row in a])
        case _:
            raise AssertionError(f"{r} has no closed form")


CLOSED = [r for r in INSTANCES if not isinstance(r, FDivergence)]  # that has a root instead


@pytest.mark.parametrize("retention", CLOSED, ids=repr)
def test_link_is_the_published_formula(retention: Retention):
    memory, context = problem(retention)
    weights = retention.link(memory, context)
    for b in range(len(memory)):
        one = context._replace(
            anchor=context.anchor[b],
            threshold=None if context.threshold is None else context.threshold[b],
        )
        close(weights[b], literal(retention, memory[b], one))


@pytest.mark.parametrize("q", [2.5, 3.0, 4.0, 6.0])
def test_exact_lq_is_the_minimiser_and_the_printed_one_is_not(q: float):
    s = q / (q - 1)
    memory, context = problem(Lq())

    def slope(w: Tensor) -> Tensor:
        w = w.detach().requires_grad_()
        norms = (w.abs() ** s).sum((-2, -1)) ** (2 / s)
        objective = norms.sum() / (2 * (s - 1)) - (memory * w).sum()
        return torch.autograd.grad(objective, w)[0]

    exact = Lq(q=q, form="exact", eps=1e-5).link(memory, context)
    close(slope(exact), torch.zeros_like(memory), 1e-9)
    printed = Lq(q=q, eps=1e-5).link(memory, context)
    best = (memory * printed).sum() / (printed.abs() ** s).sum() ** (2 / s) * (s - 1)
    assert slope(best * printed).abs().max() > 0.1  # not even the right direction


def test_printed_link_is_an_involution_at_four_and_grows_as_memory_decays():
    r = Lq(q=4.0, eps=1e-6)
    memory, context = problem(r)
    close(r.link(r.link(memory, context), context), memory, 1e-9)
    assert (r.link(0.5 * memory, context).abs() > r.link(memory, context).abs()).all()


def test_kl_is_the_step_of_kl_and_entropy():
    theta, beta = 0.7, 2.0
    eta = 1 / (1 / theta + 1 / beta)
    r = KLDecay(axis="in", scale=5.0)
    anchor, context = problem(r)
    old = r.link(anchor, context)
    g = torch.randn_like(old)
    new = r.link(eta / theta * old.log() - eta * g, context).requires_grad_()
    objective = (g * new + new * (new / old).log() / theta + new * new.log() / beta).sum()
    (slope,) = torch.autograd.grad(objective, new)
    close(slope, slope[:, :1].expand_as(slope))  # constant along every slice: stationary
    close(new.sum(-2), torch.full_like(new[:, 0], 5.0))


@divergences
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_f_divergence_is_stationary(divergence, scale: float):
    f = {
        "reverse_kl": lambda t: -t.log(),
        "chi2": lambda t: (t - 1) ** 2 / 2,
        "hellinger": lambda t: 2 * (1 - t.sqrt()),
    }[divergence]
    r = FDivergence(divergence=divergence, axis="out", scale=2.0)
    memory, context = problem(r, weight=(5, 7), scale=scale)
    weights = r.link(memory, context).requires_grad_()
    step, old = context.anchor - memory, context.anchor
    (slope,) = torch.autograd.grad((step * weights + old * f(weights / old)).sum(), weights)
    alive = weights > 0
    level = slope.masked_fill(~alive, math.inf).amin(-1, keepdim=True)
    close((slope - level)[alive], torch.zeros_like(slope[alive]), 1e-9 * max(1, scale))
    assert (slope >= level - 1e-9 * scale).all()  # a weight at zero would like to be negative
    close(weights.sum(-1), torch.full_like(weights[..., 0], 2.0))
    assert bool(alive.all()) == (divergence != "chi2" or scale < 1)


@divergences
def test_f_divergence_agrees_with_kl_for_small_steps(divergence):
    """All f-divergences are the same to second order, up to f''(1)."""
    curvature = 0.5 if divergence == "hellinger" else 1.0
    memory, context = problem(FDivergence(divergence=divergence), scale=1e-5)
    weights = FDivergence(divergence=divergence).link(memory, context)
    step = context.anchor - memory
    softmax = (context.anchor.log() - step / curvature).softmax(-2)
    close(weights, softmax, 1e-9)


def test_elastic_net_is_the_minimiser():
    theta, beta, a = 0.7, 2.0, 3.0
    alpha = beta / (beta + theta)
    eta = alpha * theta
    old, context = problem(ElasticNet(form="proximal"))
    g = torch.randn_like(old)
    context = context._replace(threshold=torch.full_like(old[:, :1, :1], eta / a))
    new = ElasticNet(form="proximal").commit(alpha * old - eta * g, context)
    smooth_slope = g + (new - old) / theta + new / beta
    zero = new == 0
    assert 0 < zero.sum() < zero.numel()
    close((smooth_slope + new.sign() / a)[~zero], torch.zeros_like(new[~zero]))
    assert (smooth_slope[zero].abs() <= 1 / a).all()

    memory, context = problem(ElasticNet())
    weights = ElasticNet().link(memory, context)
    assert context.threshold is not None
    assert ((memory - weights).abs() <= context.threshold + 1e-12).all()
    kept = weights != 0
    shrunk = (memory - weights - context.threshold * weights.sign())[kept]
    close(shrunk, torch.zeros_like(shrunk))


def test_proximal_thresholds_add_up_along_a_chunk():
    r = ElasticNet(form="proximal")
    decay, gamma = [0.9, 0.8, 0.95], [0.03, 0.01, 0.02]
    g = 0.01 * torch.randn(3, 4, 3, dtype=torch.float64)
    start = torch.linspace(1, 2, 12, dtype=torch.float64).view(4, 3)
    token = chunk = start
    total = torch.zeros(1, 1, dtype=torch.float64)
    for t in range(3):
        now = Context(2, token, threshold=torch.full_like(total, gamma[t]))
        token = r.commit(decay[t] * token - g[t], now)
        chunk, total = decay[t] * chunk - g[t], decay[t] * total + gamma[t]
    close(r.commit(chunk, Context(2, start, threshold=total)), token)


def test_lattice_writes_along_the_gradient_of_its_read():
    r = Orthogonal()
    slots, context = problem(r)
    code, value = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    slots = slots.requires_grad_()
    read = slots / slots.norm(dim=-1, keepdim=True)
    error = (code[:, None] @ read)[:, 0] - value
    (slope,) = torch.autograd.grad(error.square().sum() / 2, slots)
    update = code[..., None] * error[:, None]  # the gradient with respect to what is read
    pulled = r.pull(update, context._replace(anchor=slots))
    close(pulled, slope)
    close((pulled * slots).sum(-1), torch.zeros_like(pulled[..., 0]))


# Claims


@every
def test_claims_of_identity_and_normalisation(retention: Retention):
    memory, context = problem(retention)
    weights = retention.link(memory, context)
    unchanged = [weights, retention.commit(memory, context), retention.pull(memory, context)]
    assert retention.link_is_identity == all(torch.equal(x, memory) for x in unchanged)
    if retention.link_is_normaliser:
        close(memory * retention.multiplier(memory, context), weights)
    else:
        assert retention.link_at == "token"
        with pytest.raises(NotImplementedError, match=f"{retention.name!r} does not claim"):
            retention.multiplier(memory, context)


@every
def test_claim_of_monotonicity(retention: Retention):
    """The gradient of a convex function has a symmetric positive Jacobian, and is monotone."""
    memory, context = problem(retention, lead=())
    jacobian = torch.func.jacrev(lambda a: retention.link(a, context))(memory).view(12, 12)
    asymmetry = (jacobian - jacobian.mT).abs().max()
    curvature = torch.linalg.eigvalsh(jacobian + jacobian.mT).min()
    assert (asymmetry < 1e-12 and curvature > -1e-12) == retention.link_is_monotone
    for scale in (1e-3, 1.0, 30.0) if retention.link_is_monotone else ():
        a, context = problem(retention, lead=(64,), scale=scale)
        b = a + scale * torch.randn_like(a)
        change = retention.link(a, context) - retention.link(b, context)
        assert (change * (a - b)).sum((-2, -1)).min() > -1e-12


MONOTONE = [r for r in INSTANCES if r.link_is_monotone]


@pytest.mark.parametrize("retention", MONOTONE, ids=repr)
def test_small_dual_step_lowers_a_loss(retention: Retention):
    memory, context = problem(retention)
    if isinstance(retention, FDivergence | Orthogonal):  # these step from the anchor
        memory = context.anchor
    weights = retention.link(memory, context)
    elsewhere = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1), dtype=weights.dtype)
    update = weights - elsewhere  # gradient of half the squared distance
    at_step = context._replace(anchor=memory) if isinstance(retention, Orthogonal) else context
    moved = retention.link(memory - 1e-5 * retention.pull(update, at_step), context)
    assert ((moved - weights) * update).sum() < 0


# Commits


@every
def test_commit_changes_no_weight_and_twice_is_once(retention: Retention):
    memory, context = problem(retention)
    weights = retention.link(memory, context)
    committed, later = after_commit(retention, memory, context)
    close(retention.link(committed, later), weights)
    close(retention.commit(committed, later), committed)


@every
def test_start_is_committed(retention: Retention):
    """With nothing written and nothing decayed the state does not change."""
    start, context = problem(retention, scale=0.0)
    if context.threshold is not None:
        context = context._replace(threshold=torch.zeros_like(context.threshold))
    close(retention.commit(start, context), start)


@pytest.mark.parametrize(
    "retention",
    [r for r in INSTANCES if isinstance(r, KLDecay | FDivergence | WeightNorm)],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_simplex_stays_a_simplex_and_a_sphere_a_sphere(retention, dtype):
    memory, context = problem(retention, dtype=dtype)
    dims, tol = slices(retention), 1e-5 if dtype == torch.float32 else 1e-12
    for _ in range(50):
        memory, context = after_commit(retention, 0.9 * memory, context)
        memory = memory - torch.randn_like(memory)
    weights = retention.link(memory, context)
    if isinstance(retention, WeightNorm):
        assert context.start is not None
        close(weights.norm(dim=dims, keepdim=True), context.start, tol)
    else:
        c = weights[0].numel() if retention.scale == "size" else retention.scale
        mass = weights.sum(dims) / c
        close(mass, torch.ones_like(mass), tol)
        assert (weights >= 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_boxes(scale: float):
    for r, low, high in [
        (Logistic(), 0.0, 1.0),
        (Tanh(), -1.0, 1.0),
        (Exponentiated(), 0.0, math.exp(20.0) * (1 + 1e-12)),
    ]:
        memory, context = problem(r, scale=scale)
        weights = r.link(memory, context)
        assert weights.min() >= low and weights.max() <= high
    for row in Orthogonal().link(memory, context).flatten(0, -2):
        assert row.norm() == pytest.approx(1)


# Numbers at their extremes


@every
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-20, 1e-3, 1e4])
def test_finite_in_float32(retention: Retention, value: float):
    memory, context = problem(retention, weight=(6, 5), dtype=torch.float32)
    signs = memory.sign() * torch.rand_like(memory).clamp_min(0.1)
    signs[:, 1] = 1  # slices that agree, and slices that do not
    memory = (context.anchor if isinstance(retention, FDivergence) else 0) - value * signs
    threshold = context.threshold
    inputs = [memory, context.anchor] + ([] if threshold is None else [0 * threshold, threshold])
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    for gamma in inputs[2:] or [None]:
        context = context._replace(anchor=inputs[1], threshold=gamma)
        outputs = [retention.link(inputs[0], context), retention.commit(inputs[0], context)]
        outputs.append(retention.pull(inputs[0], context))
        for y in outputs:
            assert y.isfinite().all()
            if y.requires_grad:
                for g in torch.autograd.grad(y, inputs, torch.randn_like(y), allow_unused=True, retain_graph=True):
                    assert g is None or g.isfinite().all()


@divergences
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2])
def test_f_divergence_in_float32_is_that_in_float64(divergence, scale: float):
    r = FDivergence(divergence=divergence)
    memory, context = problem(r, weight=(64, 4), scale=scale)
    context = context._replace(anchor=(8 * context.anchor.log()).softmax(-2))  # some are 1e-12
    step = scale * torch.randn_like(memory)
    single = context.anchor.float() - step.float()
    weights = r.link(context.anchor - step, context)
    close(r.link(single, context._replace(anchor=context.anchor.float())).double(), weights, 1e-4)


@every
def test_gradients(retention: Retention):
    memory, context = problem(retention, lead=(1,), weight=(3, 2))

    def maps(memory: Tensor, anchor: Tensor, *threshold: Tensor) -> tuple[Tensor, ...]:
        now = context._replace(anchor=anchor, threshold=threshold[0] if threshold else None)
        now = now._replace(start=retention.start(anchor, 2))
        return retention.link(memory, now), retention.pull(memory, now)

    inputs = [memory, context.anchor] + ([context.threshold] if context.threshold is not None else [])
    inputs = [x.detach().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(maps, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(maps, inputs, atol=1e-5, rtol=1e-4)


# Limits, shapes, bad input


def test_limits():
    memory, context = problem(ElasticNet())
    for exponent in ("paper", "exact"):
        close(Lq(q=2.0, form=exponent).link(memory, context), memory)
        close(Lq(q=2 + 1e-9, form=exponent).link(memory, context), memory, 1e-6)
    for form in ("ftrl", "proximal"):
        for smooth in (False, True):
            r = ElasticNet(form=form, smooth=smooth)
            for gamma in (0.0, 1e-13):
                now = context._replace(threshold=torch.full_like(memory[:, :1, :1], gamma))
                close(r.link(memory, now), memory, 1e-11)
    ones = KLDecay(scale="size").link(torch.zeros_like(memory), context)
    close(ones, torch.ones_like(ones))
    close(KLDecay(scale=3.0).link(memory, context), 3 * KLDecay().link(memory, context))
    close(Tanh().link(memory, context), 2 * Logistic().link(2 * memory, context) - 1)
    close(KLDecay().link(memory + 7, context), KLDecay().link(memory, context))


@every
@pytest.mark.parametrize("weight", [(5,), (4, 3), (2, 3, 2)])
def test_leading_dimensions_are_a_batch(retention: Retention, weight):
    """Tokens read their own accumulators around one anchor."""
    memory, context = problem(retention, weight=weight, lead=(2, 3, 1))
    tokens = memory + 0.1 * torch.randn(2, 3, 4, *weight, dtype=memory.dtype)
    weights = retention.link(tokens, context)
    assert weights.shape == tokens.shape
    dims, *constants = context
    one = Context(dims, *[None if x is None else x[1, 2, 0] for x in constants])  # type: ignore
    close(weights[1, 2, 3], retention.link(tokens[1, 2, 3], one))


@pytest.mark.parametrize("retention", [KLDecay(), FDivergence(), WeightNorm()], ids=repr)
def test_vectors_have_one_axis(retention: KLDecay | FDivergence | WeightNorm):
    results = []
    for axis in ("in", "out", "all"):
        r = dataclasses.replace(retention, axis=axis)
        memory, context = problem(r, weight=(5,))
        results.append(r.link(memory, context))
    close(results[0], results[1])
    close(results[0], results[2])


@every
def test_functional_transforms(retention: Retention):
    memory, context = problem(retention)
    context = context._replace(anchor=context.anchor[0], threshold=None)
    if "threshold" in retention.gates:
        context = context._replace(threshold=torch.tensor(0.1, dtype=memory.dtype))
    if context.start is not None:
        context = context._replace(start=context.start[0])
    slope = torch.func.grad(lambda a: retention.link(a, context).square().sum())
    mapped = torch.func.vmap(slope)(memory)
    close(mapped[1], slope(memory[1]))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lq", {"q": 1.5}, "dual exponent q >= 2, got 1.5; the dual of 1.5 is q=3"),
        ("lq", {"q": math.nan}, "q >= 2"),
        ("lq", {"q": 33.0}, "larger eps"),
        ("lq", {"form": "printed"}, "form to be one of"),
        ("lq", {"norm": "max"}, "norm to be one of"),
        ("lq", {"form": "exact", "link_at": "chunk"}, "link_at='token' with form='exact'"),
        ("lq", {"eps": 0.0}, "finite eps > 0, got 0.0"),
        ("l2", {"gradient_at": "start"}, "gradient_at to be one of"),
        ("kl", {"axis": "rows"}, "axis to be one of"),
        ("kl", {"scale": "length"}, "scale > 0 or 'size', got 'length'"),
        ("f_divergence", {"scale": -1.0}, "scale > 0 or 'size', got -1.0"),
        ("f_divergence", {"divergence": "kl"}, "divergence to be one of"),
        ("exponentiated", {"limit": 100.0}, "limit <= 80"),
        ("elastic_net", {"form": "lazy"}, "form to be one of"),
        ("weight_norm", {"form": "mid"}, "form to be one of"),
        ("weight_norm", {"link_at": "end"}, "link_at to be one of"),
        ("orthogonal", {"eps": math.inf}, "finite eps > 0, got inf"),
    ],
)
def test_bad_fields_say_what_to_pass(name: str, fields: dict, message: str):
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        retentions.build({"name": name, **fields})


@pytest.mark.parametrize("name", sorted(DECAYING))
def test_bad_per(name: str):
    with pytest.raises(ValueError, match=f"{name} needs per to be one of"):
        retentions.build({"name": name, "per": "token"})

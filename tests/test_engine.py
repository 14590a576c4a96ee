"""What the drawn problems are too short for: several tiles, several blocks of channel decays, second derivatives, sweeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from miras import AssociativeMemory, Memory, MirasSpec
from miras.algorithms import algorithms
from miras.engine import picard
from miras.engine.coefficients import coefficients
from miras.engine.filters import last_row, propagator
from miras.engine.plan import plan
from miras.engine.problem import energy
from miras.engine.run import pieces
from miras.engine.segment import Segment
from miras.inputs import laid_out
from miras.testing import problem, relative
from miras.testing.laws import every_path_is_the_reference, splits_anywhere

DECAYED = {"name": "l2", "gradient_at": "decayed"}
KEYS = {"name": "l2", "per": "key"}

LONG = {
    "momentum over three tiles": dict(architecture="matrix", algorithm="momentum", chunk_size=1),
    "decay per key over three tiles": dict(architecture="matrix", retention=KEYS, algorithm="gd", chunk_size=1),
    "gradient at the decayed state": dict(
        architecture="matrix",
        retention={"name": "l2", "per": "key", "gradient_at": "decayed"},
        algorithm="gd",
        chunk_size=1,
    ),
    "gated delta rule": dict(architecture="matrix", retention=DECAYED, algorithm="gd", chunk_size=1, read="previous"),
    "least squares": dict(architecture="slots", algorithm="newton", retention="none", chunk_size=1),
    "conjugate gradients": dict(
        architecture="matrix", bias="dot", algorithm={"name": "newton", "solver": "cg"}, chunk_size=1
    ),
    "chunks that cannot matter": dict(architecture="matrix", bias="dot", algorithm="aggmo", chunk_size=7),
    "blocks of channels": dict(architecture="matrix", bias="huber", retention=KEYS, algorithm="gd", chunk_size=40),
    "value channels": dict(
        architecture="matrix",
        bias="huber",
        retention={"name": "l2", "per": "value"},
        algorithm="gd",
        chunk_size=40,
        read="previous",
    ),
    "window longer than a chunk": dict(architecture="matrix", algorithm={"name": "omega", "size": 5}, chunk_size=3),
}


def test_what_remains_after_the_last_token_is_the_last_row() -> None:
    logs = -torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row, carry = last_row(logs)
    rows, carries = propagator(logs)
    torch.testing.assert_close(row, rows[..., -1:, :])
    torch.testing.assert_close(carry, carries[..., -1:])


@pytest.mark.parametrize("name", [n for n in algorithms if algorithms[n].enters is not None])
def test_gradients_enter_where_an_algorithm_says(name: str) -> None:
    algorithm = algorithms.build(name)
    logs = torch.full((1, 1, 5), -0.3)
    spec = MirasSpec.make(algorithm=algorithm)
    into = coefficients(spec, dict.fromkeys(spec.gates, logs), logs, 1).end_pairs
    rows = [i for i in range(1 + algorithm.slots) if into[..., i, :].any()]
    assert rows == list(algorithm.enters or ())


@pytest.mark.parametrize("path", ["reference", "materialised", "factored", "fused"])
@pytest.mark.parametrize("architecture", ["mlp", {"name": "gated_mlp", "norm": True}], ids=["mlp", "gated"])
def test_second_derivatives_through_a_norm(architecture: Any, path: Any) -> None:
    """Are those of differences: a memory has taken one derivative already, and PyTorch's norm is wrong from the third on."""
    p = problem(MirasSpec.make(architecture=architecture, algorithm="gd", chunk_size=4, step_bound=None), length=5)
    if path == "fused" and architecture != "mlp":
        pytest.skip("has no such path")
    g = torch.Generator().manual_seed(0)
    upstream, along = (torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (p.v, p.k))

    def gradient(k: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        y, _ = replace(p, k=k).run(path)
        return torch.autograd.grad((y * upstream).sum(), k, create_graph=create_graph)[0]

    k = p.k.clone().requires_grad_()
    (got,) = torch.autograd.grad((gradient(k, create_graph=True) * along).sum(), k)
    near = [(p.k + s * 1e-5 * along).requires_grad_() for s in (1, -1)]
    wanted = (gradient(near[0]) - gradient(near[1])) / 2e-5
    assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("bias", ["l2", "huber"])
def test_rows_of_a_jacobian_at_once(bias: str) -> None:
    memory = Memory(16, heads=2, bias=bias, chunk_size=4).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert memory.explain().plan.path == "fused"
    rows = [torch.autograd.functional.jacobian(lambda x: memory(x)[0], x, vectorize=v) for v in (True, False)]
    torch.testing.assert_close(*rows)


def test_squared_norms_of_narrow_numbers() -> None:
    """And their gradients, of rows of zeros too, are those of the same numbers in float64."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[1] = 0
    (narrow, wide), rows = (x.clone().requires_grad_(), x.double().requires_grad_()), torch.tensor([1.0, 2.0, 3.0])
    got, wanted = energy(narrow, torch.float32), energy(wide, torch.float64)
    torch.testing.assert_close(got.double(), wanted)
    d_got, d_wanted = (torch.autograd.grad((y * rows).sum(), t)[0] for y, t in ((got, narrow), (wanted, wide)))
    torch.testing.assert_close(d_got, d_wanted.bfloat16())
    assert torch.equal(torch.vmap(lambda t: energy(t, torch.float32))(x), got)


@pytest.mark.parametrize("batched", ["q", "k", "v"])
def test_one_input_alone_may_be_batched(batched: str) -> None:
    """As in a loop, of a memory with slots in chunks."""
    spec = MirasSpec.make(architecture="matrix", algorithm="momentum", chunk_size=4)
    p = problem(spec, length=9)
    many = torch.stack([getattr(p, batched) * s for s in (1.0, 0.5)])

    def answers(x: torch.Tensor) -> torch.Tensor:
        return replace(p, **{batched: x}).run("factored")[0]

    torch.testing.assert_close(torch.vmap(answers)(many), torch.stack([answers(x) for x in many]))


@pytest.mark.parametrize("name", LONG)
def test_long_sequences_on_every_path(name: str) -> None:
    length = 40 if LONG[name]["chunk_size"] in (3, 40) else 135
    drawn = problem(MirasSpec.make(**LONG[name]), length=length, batch=1, heads=1)
    every_path_is_the_reference(drawn)
    splits_anywhere(problem(MirasSpec.make(**LONG[name]), length=70, batch=1, heads=1), 33)


def test_the_written_out_backward_can_be_differentiated() -> None:
    spec = MirasSpec.make(architecture={"name": "mlp", "expansion": 1}, bias="l2", algorithm="momentum", chunk_size=2)
    drawn = problem(spec, length=4, d_key=2, d_value=2, batch=1, heads=1)
    k, v = drawn.k.clone().requires_grad_(), drawn.v.clone().requires_grad_()

    def answer(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return AssociativeMemory(spec, "fused")(drawn.q, k, v, drawn.gates, drawn.state)[0]

    assert torch.autograd.gradgradcheck(answer, (k, v))


def test_sweeps_end_early_when_steps_are_small_and_never_late() -> None:
    spec = MirasSpec.make(architecture="mlp", bias="huber", algorithm="gd", chunk_size=1)
    drawn = problem(spec, length=24, batch=1, heads=1)
    memory = AssociativeMemory(spec)
    shapes = memory.shapes(4, 4)
    counts = []
    for lr in (1e-4, 0.5):
        gates = drawn.gates | {"lr": torch.full_like(drawn.gates["lr"], lr)}
        x = laid_out(spec, drawn.q, drawn.k, drawn.v, gates)
        (piece,) = pieces(spec, plan(spec, shapes, path="picard"), drawn.state, x)
        picard.block(Segment(spec, shapes, drawn.state, *piece), 1e-8, counts)
    assert counts[0] < counts[1] <= 24


def test_a_path_that_does_not_claim_a_spec_says_why() -> None:
    with pytest.raises(ValueError, match="path 'exact' cannot compute this spec: chunk_size is 16"):
        AssociativeMemory(MirasSpec(), "exact").plan(4, 4)
    with pytest.raises(ValueError, match="path must be one of kernel, exact, fused"):
        AssociativeMemory(MirasSpec(), "warp").plan(4, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", range(1, 9))
def test_the_anchor_moves_with_its_lag_on_every_path(length: int) -> None:
    """Also where no number depends on it, as in a memory without a prediction."""
    spec = MirasSpec.make(architecture="matrix", bias="dot", algorithm="gd", chunk_size=3, anchor_lag=1)
    every_path_is_the_reference(problem(spec, length=length))
    splits_anywhere(problem(spec, length=9), length)

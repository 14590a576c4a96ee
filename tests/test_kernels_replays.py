"""Windows of pairs that are learned again, in Triton kernels: what the token loop computes, interpreted or (``gpu``) on a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import zoo
from miras import AssociativeMemory, Memory, MirasSpec
from miras.kernels import replays, trust
from miras.kernels.table import Dims
from miras.testing import TOLERANCE, problem
from miras.testing.problems import Problem
from tests.kernels import DEVICE, DTYPE, agrees, cast, close, compiles, errors, results, same_bits_twice, wide


def window(size: int, inner: Any = "gd") -> dict[str, Any]:
    return {"name": "omega", "size": size, "inner": inner}


MATRIX: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gd": (dict(), dict(length=24, d_key=20)),
    "momentum": (dict(algorithm=window(4, "momentum")), dict(length=21, d_value=24)),
    "aggmo": (dict(algorithm=window(3, "aggmo")), dict(length=16, heads=1)),
    "huber, bounded": (dict(algorithm=window(4, "momentum"), bias="huber", step_bound=1.0), dict(length=21, d_key=20)),
    "huber per channel": (dict(bias={"name": "huber", "per": "value"}), dict(length=16, d_value=20)),
    "no prediction": (dict(bias="dot", retention="none"), dict(length=19)),
    "no prediction, many chunks": (dict(bias="dot", algorithm=window(21), chunk_size=7), dict(length=73)),
    "read before the write": (dict(read="previous", algorithm=window(4, "nesterov")), dict(length=16)),
    "longer than a chunk": (dict(algorithm=window(12)), dict(length=24)),
    "odd chunks": (dict(algorithm=window(7), chunk_size=5), dict(length=18, d_value=40)),
}
"""Fields of a spec (the delta rule in chunks of 8 with a window of 4 otherwise, unbounded) and of a problem."""

PERCEPTRONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "perceptron": (dict(chunk_size=12), dict(length=29)),
    "perceptron, huber, bounded": (
        dict(algorithm=window(4, "momentum"), bias="huber", step_bound=1.0),
        dict(length=24),
    ),
    "perceptron, huber per channel": (dict(bias={"name": "huber", "per": "value"}), dict(length=16, batch=2)),
    "perceptron, longer than a chunk": (dict(algorithm=window(9, "momentum")), dict(length=24)),
}

CASES = MATRIX | {
    n: (dict(architecture={"name": "mlp", "expansion": 2}) | f, dict(heads=1) | s) for n, (f, s) in PERCEPTRONS.items()
}

cases = pytest.mark.parametrize("name", CASES)


def drawn(name: str, **other: Any) -> Problem:
    fields, sizes = CASES[name]
    basis = {"architecture": "matrix", "algorithm": window(4), "chunk_size": 8, "step_bound": None}
    arguments: dict[str, Any] = {"d_key": 16, "d_value": 16, "batch": 1, "heads": 2} | sizes | other
    p = problem(MirasSpec.make(**basis | fields), **arguments)
    # every pair is learned as often as its window is long
    return replace(p, gates=p.gates | {"lr": 0.3 * p.gates["lr"]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a device the others run")
@cases
def test_interpreted(name: str) -> None:
    """Everything is that of the token loop in float64, on the same numbers, the pairs to remember among it."""
    p = cast(drawn(name), torch.float32, "cpu")
    found = errors(results(p, "kernel"), results(wide(p), "reference"), p, torch.float32)
    assert any("replay" in n for n in found)
    bad = {n: e for n, e in found.items() if not e <= TOLERANCE["kernel"][torch.float32]}
    assert not bad, bad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MATRIX)
def test_on_device(name: str, dtype: torch.dtype) -> None:
    agrees(drawn(name), dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("length", [288, 301])
@pytest.mark.parametrize("name", ["momentum", "huber, bounded", "no prediction"])
def test_tiles_on_device(name: str, length: int, d: int) -> None:
    """Real sizes at bfloat16, whole chunks or not, and the same bits twice."""
    _large(name, d, length)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [32, 64])
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_on_device(name: str, d: int) -> None:
    _large(name, d, 301)


def _large(name: str, d: int, length: int) -> None:
    p = drawn(name, d_key=d, d_value=d, length=length)
    algorithm = replace(p.spec.algorithm, size=17)  # type: ignore[call-arg]
    p = problem(replace(p.spec, chunk_size=48, algorithm=algorithm), length=length, d_key=d, d_value=d, batch=2)
    p = replace(p, gates=p.gates | {"lr": 0.02 * p.gates["lr"]})
    agrees(p, torch.bfloat16, "cuda")
    same_bits_twice(p)


@pytest.mark.parametrize("name", ["momentum", "longer than a chunk", "perceptron"])
def test_split(name: str) -> None:
    """A sequence that is cut inside a chunk, or at a boundary: the last pairs go along."""
    p = cast(drawn(name, length=40), DTYPE, DEVICE)
    y, state = p.run("kernel")
    for at in (11, p.spec.chunk_size):
        head, after = p.slice(0, at).run("kernel")
        tail, end = replace(p.slice(at, 40), state=after).run("kernel")
        close(torch.cat([head, tail], 1), y)
        for n, t in state.tensors().items():
            close(end.tensors()[n], t)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break() -> None:
    compiles(cast(drawn("huber, bounded", length=16), DTYPE, DEVICE), "q", "k", "v", "state/memory/w")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter never miscompiles")
def test_it_is_tried() -> None:
    spec = replace(drawn("momentum").spec, chunk_size=12)
    assert trust.error(replays.MATRIX, spec, Dims(16, 16), torch.device("cpu"), torch.float32, 2) < 1e-4


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    (dict(algorithm="momentum"), "matrix under a window: algorithm 'momentum' replays no pairs"),
    (dict(algorithm=window(1)), "matrix under a window: algorithm 'omega' replays no pairs"),
    (dict(chunk_size=62), "matrix under a window: chunk_size 62 and the 3 pairs before a chunk are over 64"),
    (
        dict(chunk_size=1),
        "matrix under a window: tiles of 1 tokens, with the 3 pairs before them, leave nothing to do in parallel",
    ),
    (dict(algorithm=window(4, "muon")), "matrix under a window: algorithm 'muon' is not a linear filter"),
    (dict(chunk_size=128, anchor_lag=64), "matrix under a window: anchor_lag is not 0"),
    (dict(algorithm=window(4, "dgd")), "matrix under a window: algorithm 'dgd' in a window changes errors"),
    (dict(retention={"name": "l2", "per": "key"}), "matrix under a window: a gate per channel"),
    (dict(architecture="gated_mlp"), "perceptron under a window: architecture 'gated_mlp' is not a perceptron"),
)


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_who_is_refused_and_why(fields: dict[str, Any], reason: str) -> None:
    spec = MirasSpec.make(**{"architecture": "matrix", "algorithm": window(4), "chunk_size": 8} | fields)
    shapes = AssociativeMemory(spec).shapes(64, 64)
    kernels = {k.name: k for k in (replays.MATRIX, replays.PERCEPTRON)}
    name, wanted = reason.split(": ", 1)
    assert (kernels[name].supports(spec, shapes, 1) or "").startswith(wanted)


def test_the_one_of_the_zoo() -> None:
    """Whose chunk and window are over a tile, which does not matter to it."""
    spec = zoo.spec("swla")
    assert spec.chunk_size + spec.algorithm.window - 1 > 64
    assert replays.one_matrix(spec, AssociativeMemory(spec).shapes(64, 64), 1) is None


def test_it_says_which_kernel_runs() -> None:
    memory = Memory(32, heads=2, architecture="matrix", algorithm=window(4), chunk_size=8)
    assert memory.explain().plan.refused["kernel"] == f"{replays.MATRIX.name} needs a CUDA device"

"""Every compatible combination of the four registries, once on every path that claims it."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from miras import MirasSpec
from miras.spec import AXES
from miras.testing import problem, relative
from miras.testing.laws import path_tolerance, paths, probe, tensors
from miras.testing.strategies import NEEDED, SMALL

SHARDS = 48
CHUNKS = (1, 4)
RECORD = Path("runs/product")


def small(axis: str, name: str) -> Any:
    """The component in a small size, its switches as they are by default."""
    component = AXES[axis][name]
    known = component.__dataclass_fields__
    sizes = {n: v for n, v in SMALL.items() if n in known and n not in ("dim", "degree", "iterations")}
    return component(**NEEDED.get(name, {}), **sizes)


@pytest.mark.parametrize(("axis", "name"), [(axis, name) for axis, registry in AXES.items() for name in registry])
def test_sizes_suit_it(axis: str, name: str) -> None:
    """So that the test of every combination, which few run, can begin."""
    assert small(axis, name).name == name


def point(names: tuple[str, ...], chunk: int) -> MirasSpec | None:
    """The combination with small sizes, or None if it is refused."""
    fields = {axis: small(axis, name) for axis, name in zip(AXES, names, strict=True)}
    # unbounded steps through an exponential are chaotic: what differs is rounding, grown past any tolerance
    bound = 1.0 if chunk == 1 or names[2] == "exponentiated" else None
    try:
        return MirasSpec(**fields, chunk_size=chunk, step_bound=bound)
    except ValueError:
        return None


@pytest.mark.nightly
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_combination(shard: int) -> None:
    combinations = list(product(*AXES.values()))[shard::SHARDS]
    counted, worst = 0, {}
    for index, names in enumerate(combinations):
        chunk = CHUNKS[(index + index // 12) % len(CHUNKS)]
        spec = point(names, chunk)
        if spec is None:
            continue
        drawn = problem(spec, length=6, batch=1, heads=1, seed=index)
        wanted = everything(drawn, "reference")
        scale = max(g.norm().item() for n, g in wanted.items() if n.startswith("d "))
        for path in paths(spec, drawn):
            got = everything(drawn, path)
            errors = {
                n: relative(got[n], x, floor=max(1e-3, 1e-3 * scale if n.startswith("d ") else 0))
                for n, x in wanted.items()
            }
            error = max(errors.values()) if all(e == e for e in errors.values()) else float("nan")
            assert error <= path_tolerance(spec, path, torch.float64), (
                f"{spec!r} on {path}: {error} at {max(errors, key=errors.__getitem__)}"
            )
            counted += 1
            worst[path] = max(worst.get(path, 0.0), error)
    RECORD.mkdir(parents=True, exist_ok=True)
    (RECORD / f"{shard}.json").write_text(json.dumps({"checked": counted, "worst": worst, "pid": os.getpid()}))
    assert counted


def everything(drawn, path: str) -> dict[str, torch.Tensor]:
    """Outputs, states and all gradients of a problem on a path."""
    leafy, leaves = drawn.leaves()
    found = tensors(*leafy.run(path, 1e-11 if path == "picard" else None))
    live = [x for x in found.values() if x.requires_grad]
    gradients = torch.autograd.grad(probe(live), list(leaves.values()), allow_unused=True)
    named = {f"d {n}": torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, gradients, strict=True)}
    return {n: x.detach() for n, x in found.items()} | named

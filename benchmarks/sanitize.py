"""Calls of kernels and of their gradients, small enough for a sanitizer, and nothing else on the device.

compute-sanitizer --tool racecheck python -m benchmarks.sanitize titans_lmm --chunk 16 --tokens 48 --width 64
compute-sanitizer --tool racecheck python -m benchmarks.sanitize '{"architecture": "slots", "bias": "l2"}'
compute-sanitizer --tool memcheck python -m benchmarks.sanitize --all 0 4

The last is a fourth of `FORMS`, which are every kernel there is. What kernels are tried on at first use is left out: a sanitizer would
watch PyTorch for minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import zoo
from miras import AssociativeMemory, Memory, MirasSpec
from miras.kernels import verdicts
from miras.state import MemoryState
from miras.testing.problems import problem


@dataclass(frozen=True)
class Form:
    """A memory and the sizes of a call."""

    spec: MirasSpec
    tokens: int
    width: int = 64
    heads: int = 1


def matrix(chunk: int, **fields: Any) -> MirasSpec:
    """With momentum and free steps, unless something else is said."""
    plain = dict(architecture="matrix", algorithm="momentum", step_bound=None)
    return MirasSpec.make(**plain | fields, chunk_size=chunk)


def perceptron(chunk: int, architecture: Mapping[str, Any] = {}, **fields: Any) -> MirasSpec:
    """Of two matrices, four times as wide inside, with momentum and free steps, unless something else is said."""
    plain = dict(algorithm="momentum", step_bound=None)
    inside = {"name": "mlp", "expansion": 4, **architecture}
    return MirasSpec.make(architecture=inside, **plain | fields, chunk_size=chunk)


BY_KEY, BY_VALUE, DECAYED = ({"name": "l2"} | x for x in ({"per": "key"}, {"per": "value"}, {"gradient_at": "decayed"}))
WINDOW = {"name": "omega", "size": 4, "inner": "momentum"}
GATED = {"name": "gated_mlp", "expansion": 2, "residual": True, "norm": True}
PROXIMAL = {"name": "elastic_net", "form": "proximal"}

FORMS = (
    *(Form(matrix(chunk, bias="huber"), 3 * chunk) for chunk in (8, 16, 21, 64)),
    *(Form(matrix(chunk, algorithm=a), 3 * chunk) for a in ("nesterov", "qhm", "aggmo") for chunk in (16, 64)),
    *(Form(matrix(64, bias="huber", step_bound=1.0), 192, width) for width in (64, 128)),
    *(Form(matrix(1, algorithm=a, retention=DECAYED), 100) for a in ("gd", "momentum")),
    Form(matrix(1, algorithm="implicit", step_bound=1.0), 100),
    Form(zoo.spec("linear_attention"), 100),
    *(Form(matrix(chunk, algorithm="gd", bias=b), 4096) for b, chunk in (("dot", 64), ("l2", 64), ("l2", 1))),
    *(Form(zoo.spec("titans_lmm", chunk_size=chunk), 2 * chunk + 5) for chunk in (16, 64)),
    *(Form(zoo.spec("titans_lmm", chunk_size=c), 2 * c, width) for c, width in ((64, 48), (64, 128), (128, 64))),
    *(Form(perceptron(64, bias="huber", step_bound=bound), 133, heads=h) for bound in (None, 1.0) for h in (1, 32, 64)),
    *(Form(perceptron(64, algorithm="gd", step_bound=bound), 576, heads=32) for bound in (None, 1.0)),
    *(
        Form(zoo.spec(name, chunk_size=chunk), 2 * chunk)
        for name in ("yaad", "moneta", "ttt_mlp")
        for chunk in (16, 64)
    ),
    *(Form(zoo.spec("memora", form="recommended", read="anchor", chunk_size=c), 2 * c) for c in (16, 64)),
    *(Form(perceptron(chunk, x), 2 * chunk) for x in ({"affine": True}, GATED) for chunk in (16, 64)),
    *(Form(zoo.spec("ttt_linear", chunk_size=chunk), 3 * chunk) for chunk in (8, 16, 64)),
    Form(zoo.spec("ttt_linear", chunk_size=16, architecture={"bias": False}, step_bound=1.0), 48),
    *(Form(zoo.spec(name), 100) for name in ("kda", "gla", "rwkv7", "hgrn2")),
    *(Form(matrix(c, algorithm="gd", retention=r), 3 * c) for r in (BY_KEY, BY_VALUE) for c in (16, 64)),
    Form(matrix(1, algorithm="gd", retention=BY_VALUE, bias="dot"), 100),
    *(Form(matrix(c, retention=r, read="anchor"), 3 * c) for r in ("tanh", "elastic_net", PROXIMAL) for c in (16, 64)),
    *(Form(matrix(chunk, algorithm=WINDOW), 3 * chunk) for chunk in (8, 16)),
    Form(perceptron(16, algorithm=WINDOW), 48),
)
"""Every kernel: in tiles of 16 tokens, where threads hold copies of what they share, and of 64."""


def call(form: Form, where: torch.device, dtype: torch.dtype) -> str:
    """Forward, backward and, from what they leave, a token more; which kernel that was."""
    p = problem(form.spec, length=form.tokens, d_key=form.width, d_value=form.width, batch=1, heads=form.heads)
    plan = AssociativeMemory(p.spec, "kernel").plan(form.width, form.width, p.spec.algorithm.steps, (where, dtype))
    p = p.map(lambda x: x.to(where, dtype))
    state = MemoryState.from_tensors({n: t.float().to(where) for n, t in p.state.tensors().items()})
    y, state = replace(p, state=state).leaves()[0].run("kernel")
    y.sum().backward()
    with torch.no_grad():
        replace(p.slice(0, 1), state=state.detach()).run("kernel")
    return plan.kernel.name if plan.kernel else plan.path


def layer(where: torch.device, dtype: torch.dtype) -> str:
    """What stands around a memory."""
    memory = Memory(256, heads=4, spec=matrix(64)).to(where, dtype)
    y, _ = memory(torch.randn(1, 150, 256, device=where, dtype=dtype))
    y.sum().backward()
    return "a layer"


def main() -> None:
    """Runs and says which kernels they were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", nargs="?", help="a published one, or fields of a spec in JSON")
    parser.add_argument("--form", default="paper", help="of a published one")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument(
        "--all", type=int, nargs=2, metavar=("PART", "PARTS"), help="one of so many parts of every kernel"
    )
    args = parser.parse_args()
    verdicts.kept = lambda *_: 0.0
    there = torch.device("cuda"), torch.bfloat16
    if args.all:
        part, parts = args.all
        for form in FORMS[part::parts]:
            print(call(form, *there), form, flush=True)
        if part == 0:
            print(layer(*there))
    elif args.memory:
        fields = json.loads(args.memory) if args.memory.startswith("{") else None
        spec = MirasSpec.make(**fields) if fields else zoo.spec(args.memory, form=args.form)
        print(call(Form(replace(spec, chunk_size=args.chunk), args.tokens, args.width, args.heads), *there))
    else:
        parser.error("name a memory, or --all PART PARTS")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()

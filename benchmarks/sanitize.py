"""One call of a kernel and of its gradients, small enough for a sanitizer, and nothing else on the device.

compute-sanitizer --tool racecheck python -m benchmarks.sanitize titans_lmm --chunk 16 --tokens 48 --width 64
compute-sanitizer --tool racecheck python -m benchmarks.sanitize '{"architecture": "slots", "bias": "l2"}'

What kernels are tried on at first use is left out: a sanitizer would watch PyTorch for minutes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

import zoo
from miras import AssociativeMemory, MirasSpec
from miras.kernels import trust
from miras.state import MemoryState
from miras.testing.problems import problem


def believed(*_: object) -> bool:
    """In the place of a trial."""
    return True


def main() -> None:
    """Runs and says which kernel it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("memory", help="a published one, or fields of a spec in JSON")
    parser.add_argument("--form", default="paper", help="of a published one")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    args = parser.parse_args()
    trust.tried = believed
    fields = json.loads(args.memory) if args.memory.startswith("{") else None
    spec = zoo.spec(args.memory, form=args.form) if fields is None else MirasSpec.make(**fields)
    p = problem(
        replace(spec, chunk_size=args.chunk),
        length=args.tokens,
        d_key=args.width,
        d_value=args.width,
        batch=1,
        heads=args.heads,
    )
    where, dtype = torch.device("cuda"), torch.bfloat16
    plan = AssociativeMemory(p.spec, "kernel").plan(args.width, args.width, 1, (where, dtype))
    p = p.map(lambda x: x.to(where, dtype))
    state = MemoryState.from_tensors({n: t.float().to(where) for n, t in p.state.tensors().items()})
    y, _ = replace(p, state=state).leaves()[0].run("kernel")
    y.sum().backward()
    torch.cuda.synchronize()
    print(plan.kernel.name if plan.kernel else plan.path)


if __name__ == "__main__":
    main()

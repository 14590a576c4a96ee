"""Long sequences through a spec at its default initialisation and gates: how large does everything grow?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec

DIM, HEADS, PIECE = 16, 2, 1024
KINDS = ("random", "repeated", "padded", "rounded")
"""The rows of the batch: normal, one token all along, zeros from the middle on, and rounded to bfloat16."""

Named = tuple[str, Tensor]


def inputs(tokens: int) -> Tensor:
    """One row of every kind, ``[4, T, DIM]``."""
    x = torch.randn(len(KINDS), tokens, DIM, generator=torch.Generator().manual_seed(1))
    x[1] = x[1, :1]
    x[2, tokens // 2 :] = 0
    x[3] = x[3].bfloat16().float()
    return x


def trial(spec: MirasSpec, tokens: int) -> dict[str, float]:
    """The largest size anything had, by name: outputs, tensors of the state, gradients of all parameters and inputs.

    The loss is half the square of all outputs and of the final state. Once through the whole sequence in float32, as a
    module, and once through its first piece from bfloat16.
    """
    torch.manual_seed(0)
    memory = Memory(DIM, heads=HEADS, spec=spec)
    x = inputs(tokens)
    found: dict[str, float] = {}
    for name, z in [*whole(memory, x), *narrow(memory, x[:, :PIECE])]:
        size = float(z.detach().abs().max())
        found[name] = max(found.get(name, 0.0), size if size == size else math.inf)
    return found


def whole(memory: Memory, x: Tensor) -> Iterator[Named]:
    """Forward, then backward piece by piece: the weights of all tokens at once would fill a machine."""
    pieces, states = x.split(PIECE, 1), [memory.initial_state(len(x))]
    with torch.no_grad():
        for piece in pieces:
            states.append(memory(piece, states[-1])[1])
    back = _tensors(states[-1])
    parameters = dict(memory.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for piece, state in zip(reversed(pieces), reversed(states[:-1]), strict=True):
        leaves = _leaves({"x": piece, **_tensors(state)})
        y, after = memory(leaves["x"], MemoryState.from_tensors(state.tensors() | {n: leaves[n] for n in back}))
        out = _tensors(after)
        gradients = _pull({"y": y, **out}, {"y": y.detach(), **back}, leaves | parameters)
        total = {n: g + gradients[n] for n, g in total.items()}
        back = {n: gradients[n] for n in back}
        yield from [("y", y), ("gradient of x", gradients["x"]), *out.items()]
    start = _pull(_tensors(memory.initial_state(len(x))), back, parameters)
    yield from ((f"gradient of {n}", g + start[n]) for n, g in total.items())


def narrow(memory: Memory, x: Tensor) -> Iterator[Named]:
    """The pure core on bfloat16 queries, keys, values and gates."""
    state = memory.initial_state(len(x))
    (q, k, v, gates), _ = memory.project(x, state)
    leaves = _leaves({n: z.bfloat16() for n, z in {"q": q, "k": k, "v": v, **gates}.items()})
    start = state._replace(extra={n: e for n, e in state.extra.items() if n != "conv"}).detach()
    core = AssociativeMemory(memory.spec)
    y, after = core(leaves["q"], leaves["k"], leaves["v"], {g: leaves[g] for g in gates}, start)
    out = {"y": y, **_tensors(after)}
    gradients = _pull(out, {n: z.detach() for n, z in out.items()}, leaves)
    yield from ((f"bf16 {n}", z) for n, z in out.items())
    yield from ((f"bf16 gradient of {n}", g) for n, g in gradients.items())


def _tensors(state: MemoryState) -> dict[str, Tensor]:
    return {n: z for n, z in state.tensors().items() if n != "phase"}


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: z.detach().requires_grad_() for n, z in tensors.items()}


def _pull(out: Mapping[str, Tensor], back: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of all leaves, zero where nothing depends on one."""
    used = [n for n, z in out.items() if z.requires_grad]
    gradients = torch.autograd.grad(
        [out[n] for n in used],
        list(leaves.values()),
        [back[n] for n in used],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, gradients, strict=True))


def overflown(sizes: Mapping[str, float]) -> Iterable[str]:
    """The names of what was not finite."""
    return [n for n, size in sizes.items() if not math.isfinite(size)]

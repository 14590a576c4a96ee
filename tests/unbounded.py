"""Which rows of the covering array need the step bound: the table of docs/stability.md.

python -m tests.unbounded
"""

from __future__ import annotations

import torch

from miras import Memory, MirasSpec
from tests.covering import FACTORS, covering, make
from tests.stability import DIM, HEADS, inputs

TOKENS = {1: 256, 16: 2048, 64: 2048}
HUGE = 1e15
"""A weight beyond this is on its way out: its square, times a token's, no longer fits a float32."""


@torch.no_grad()
def lasts(spec: MirasSpec, tokens: int) -> int | None:
    """Tokens until a weight or an output is huge or not finite; None if none is."""
    torch.manual_seed(0)
    memory = Memory(DIM, heads=HEADS, spec=spec)
    x = inputs(tokens)
    state, step = memory.initial_state(len(x)), max(spec.chunk_size, 16)
    for t, piece in enumerate(x.split(step, 1), 1):
        y, state = memory(piece, state)
        if not all(bool((z.abs() < HUGE).all()) for z in (y, *state.memory.values(), *state.slots.values())):
            return t * step
    return None


def main() -> None:
    torch.set_num_threads(1)
    titles = [*FACTORS, "tokens"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    count = 0
    for row in covering():
        tokens = lasts(make(row, step_bound=None), TOKENS[row["chunk_size"]])
        if tokens:
            count += 1
            print(f"| {' | '.join(map(str, row.values()))} | {tokens} |", flush=True)
    print(f"\n{count} of {len(covering())}")


if __name__ == "__main__":
    main()

"""A memory that is set back every so many tokens: time folds into the batch, so any engine runs all periods at once.

Shapes: B batch, T tokens, H heads, D channels, n whole periods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from miras.associative import AssociativeMemory
from miras.state import MemoryState

Gates = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Periodic:
    r"""A pure memory whose state returns to a start before every token at a multiple of the period.

    $A_t=A_\text{start}-U_t$ where $t\equiv0\pmod S$, the memory's own recurrence elsewhere: the local memories of TNT
    (arXiv 2511.07343), whose sequences can so be trained in parallel over time.

    Args:
        core: the memory.
        period: tokens $S\ge1$ between resets.

    Example:
        >>> from miras import MirasSpec
        >>> core = AssociativeMemory(MirasSpec(architecture="matrix", algorithm="gd", chunk_size=2))
        >>> q, k, v = torch.randn(3, 2, 10, 1, 4)
        >>> start = core.initial_state({"w": torch.zeros(1, 4, 4)}, 2, 4, 4)
        >>> y, state = Periodic(core, 4)(q, k, v, {"lr": 0.1, "log_decay": 0.0}, start, start, 0)
        >>> y.shape, state.phase
        (torch.Size([2, 10, 1, 4]), (0, 0))
    """

    core: AssociativeMemory
    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least one token, got {self.period}")

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState, start: MemoryState, seen: int
    ) -> tuple[Tensor, MemoryState]:
        """Writes and reads like the memory itself, for rows that have all ``seen`` as many tokens.

        Args:
            q: queries ``[B, T, H, D_key]``; ``k``, ``v`` and ``gates`` as for `AssociativeMemory`.
            k: keys.
            v: values.
            gates: numbers, or tensors that run along batch and tokens.
            state: what an earlier call returned; not looked at where ``seen`` is a multiple of the period.
            start: the state every period starts from, of B rows; gradients reach it from all periods.
            seen: tokens before this call.

        Returns:
            Answers ``[B, T, H, D_value]``, and the state after the last token.
        """
        batch, length = q.shape[:2]
        head = min(-seen % self.period, length)
        whole = (length - head) // self.period

        def run(begin: int, end: int, state: MemoryState, fold: int = 1) -> tuple[Tensor, MemoryState]:
            def cut(x: Tensor | float) -> Tensor | float:
                if not isinstance(x, Tensor) or not x.dim():
                    return x
                x = x.expand(batch, length, *x.shape[2:])[:, begin:end]
                return x.unflatten(1, (fold, -1)).flatten(0, 1)

            some = {g: cut(x) for g, x in gates.items()}
            y, after = self.core(cut(q), cut(k), cut(v), some, state)  # type: ignore[arg-type]
            return y.unflatten(0, (batch, fold)).flatten(1, 2), after

        outputs: list[Tensor] = []
        if head:
            y, state = run(0, head, state)
            outputs.append(y)
        if whole:
            rows = [row for row in range(batch) for _ in range(whole)]
            y, after = run(head, head + whole * self.period, start.select(rows), whole)
            outputs.append(y)
            state = after.select([whole * row + whole - 1 for row in range(batch)])
        if head + whole * self.period < length:
            y, state = run(head + whole * self.period, length, start)
            outputs.append(y)
        return torch.cat(outputs, 1) if outputs else v.new_zeros(*q.shape[:3], v.shape[-1]), state

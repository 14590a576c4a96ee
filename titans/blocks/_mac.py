"""Memory as a context.

Shapes: B batch, T tokens, C tokens of a segment.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from miras import Memory, MemoryState
from miras.ties import Tokens
from titans.attention import Attention, KeyValue, attend, newest, rotated, with_prefix
from titans.blocks._base import Gating, Mixer, Persistent, State, memory_of, tensors_of
from titans.place import Place


class MAC(Mixer):
    r"""Memory as a context (Titans Eq. 21-25), segment by segment:

    $$h=\mathcal M^*(S W_Q),\quad \tilde S=[p\,\|\,h\,\|\,S],\quad y=\mathrm{Attn}(\tilde S),\quad
    \mathcal M\leftarrow\mathcal M(y),\quad o=y\otimes\mathcal M^*(y).$$

    $h$ is read from the memory as the segment found it. The queries of Eq. 25 are the heads of $y$ themselves, scaled to
    length one as all queries are; $W_Q$ is not applied again.

    Args:
        memory: any `miras.Memory` as wide as its heads together.
        attention: with ``segment`` C.
        persistent: P.
        form: ``causal``: token i sees $h_j$ for j ≤ i, and Eq. 25 reads the memory after token i's own write. ``paper``:
            as printed, every token of a segment sees all of its $h$ and reads the memory after the whole segment, so the
            future of the segment leaks; whole segments only.

    Raises:
        ValueError: if the memory cannot be read without being written, has another width, or the attention no segment.
    """

    def __init__(
        self, memory: Memory, attention: Attention, persistent: int = 0, form: Literal["causal", "paper"] = "causal"
    ):
        super().__init__()
        if attention.spec.segment is None:
            raise ValueError("MAC attends within segments: pass an attention with AttentionSpec(segment=...)")
        if memory.heads * memory.head_dim != memory.dim:
            raise ValueError(
                f"MAC reads with its outputs (Eq. 25): heads x head_dim must be dim {memory.dim}, got "
                f"{memory.heads} x {memory.head_dim}"
            )
        if memory.spec.algorithm.reads_through_query:
            raise ValueError(
                f"MAC reads a memory without writing (Eq. 21), which algorithm {memory.spec.algorithm.name!r} cannot"
            )
        if form not in ("causal", "paper"):
            raise ValueError(f"form must be 'causal' or 'paper', got {form!r}")
        self.memory, self.attention, self.form = memory, attention, form
        self.segment = attention.spec.segment
        self.persistent, self.gating = Persistent(persistent, memory.dim), Gating(memory.dim)

    def start(self, batch: int) -> State:
        """The learned start, which is also what the first segment retrieves from; nothing seen."""
        memory, empty = self.memory.initial_state(batch), self.attention.start(batch)
        seen = {f"{stream}.{n}": z for stream in ("h", "x") for n, z in empty.items()}
        return {"memory": memory, "found": memory} | seen

    def forward(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        """Retrieves, attends, writes, gates: one segment, or what a row has of it, after the other."""
        outputs: list[Tensor] = []
        if self.form == "paper" and any(s % self.segment for s in place.seen):
            raise ValueError(f"form='paper' reads whole segments: pass multiples of {self.segment} tokens")
        for part, now in place.pieces(self.segment):
            y, state = self._piece(x[:, part], state, now)
            outputs.append(y)
        return torch.cat(outputs, 1) if len(outputs) != 1 else outputs[0], state

    def _piece(self, x: Tensor, state: State, place: Place) -> tuple[Tensor, State]:
        mask, memory = place.mask(x.device), memory_of(state)
        found = self._found(state, place)
        q, query_tail = self.memory.queries(x, memory, mask)
        h = self.memory.emit(x, self.memory.read(found, q))  # Eq. 21
        y, seen = self._attend(x, h, tensors_of(state), place)  # Eq. 22-23
        k, v, gates, pair_tail = self.memory.writes(y, memory, mask)
        tail = None if query_tail is None or pair_tail is None else torch.cat([query_tail, pair_tail], -1)
        q = self.memory.unit(rearrange(y, "b t (h d) -> b t h d", h=self.memory.heads))
        answers, after = self.memory.stream(Tokens(q, k, v, gates), memory, tail, mask)  # Eq. 24, and 25 causally
        if self.form == "paper":
            answers = self.memory.read(after, q)
        o = self.gating(y, self.memory.emit(y, answers))  # Eq. 25
        return o, {"memory": after, "found": found} | seen

    def _found(self, state: State, place: Place) -> MemoryState:
        """The memory at the start of every row's segment."""
        memory, found = memory_of(state), state["found"]
        assert isinstance(found, MemoryState)
        begins = [row for row, seen in enumerate(place.seen) if seen % self.segment == 0]
        if len(begins) == len(place.seen):
            return memory
        return found.reset(begins, memory) if begins else found

    def _attend(self, x: Tensor, h: Tensor, state: dict[str, Tensor], place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        """Attention of ``[p | h | S]``, where h stands one segment before S."""
        spec, positions = self.attention.spec, place.positions(x.device)
        past = 0 if all(s % self.segment == 0 for s in place.seen) else self.segment  # a new segment sees nothing old
        lines: list[KeyValue] = []
        after: dict[str, Tensor] = {}
        for stream, tokens, shift in (("h", h, self.segment), ("x", x, 0)):
            k, v = self.attention.keys_values(tokens, place.values if stream == "x" else None)
            new = {"k": rotated(k, positions - shift, spec.theta), "v": v}
            line = {n: torch.cat([state[f"{stream}.{n}"].to(z.dtype), z], 1) for n, z in new.items()}
            after |= {f"{stream}.{n}": newest(z, place, spec.past) for n, z in line.items()}
            lines.append((line["k"][:, self.segment - past :], line["v"][:, self.segment - past :]))
        keys = place.offset(x.device) - past + torch.arange(past + place.tokens, device=x.device)
        mask = torch.cat([spec.visible(positions, keys, self.form == "causal"), spec.visible(positions, keys)], -1)
        rows = self.persistent.tokens
        fixed = None if rows is None else self.attention.keys_values(rows[None])
        both = (torch.cat([lines[0][0], lines[1][0]], 1), torch.cat([lines[0][1], lines[1][1]], 1))
        q, (k, v), fixed = with_prefix(self.attention.queries(x), both, positions, spec.theta, fixed)
        return self.attention.mix(x, attend(q, k, v, mask, fixed)), after

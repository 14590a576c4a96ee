"""A weight residual between the memories of successive layers.

Shapes: B rows, T tokens of a call, H heads, C tokens of a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miras.state import Weights
from titans.blocks import Mixer, State
from titans.blocks._base import memory_of, tensors_of
from titans.place import Place


class WeightResidual(nn.Module):
    r"""Runs a mixer whose memory starts every segment from its own weights and a share of those of the memory below:

    $$W_l\leftarrow O_l+g\,W_{l-1},\qquad O_l=W_l-g\,W'_{l-1},$$

    where $W_{l-1}$ is what the memory below starts the same segment from, and $W'_{l-1}$ what it started the one before
    from (zero at first). So a memory does not have to learn again what the one below has just learned; its inner gradients
    correct the sum, and what is forgotten is forgotten of the sum. g is learned for every head, zero at first.

    Other implementations of Titans add the weights below at every chunk, to the gradients only. Here the sum is formed
    where segments meet and is what is read too: a change of the state alone (of the accumulators, and of the anchor if a
    chunk is under way), so that every engine, any cut of a text and generation give the same numbers. The mixer runs a
    segment at a time, so segments should be many chunks long.

    Args:
        heads: H of the memory.
        segment: C.
        first: whether there is no memory below; the mixer's weights are only noted then.
    """

    def __init__(self, heads: int, segment: int, first: bool = False):
        super().__init__()
        self.segment = segment
        self.share = None if first else nn.Parameter(torch.zeros(heads))

    def start(self, state: State) -> State:
        """The state of a mixer before its first token, with nothing added."""
        if self.share is None:
            return state
        return state | {f"below.{n}": torch.zeros_like(w) for n, w in memory_of(state).memory.items()}

    def forward(self, mixer: Mixer, x: Tensor, state: State, place: Place) -> tuple[Tensor, State, tuple[Weights, ...]]:
        """One segment, or what a row has of it, after the other.

        Args:
            mixer: with a memory in its state.
            x: ``[B, T, dim]``.
            state: what `start` or an earlier call returned.
            place: where x stands, and in ``below`` what this method returned for the memory below.

        Returns:
            ``[B, T, dim]``, the state after the last token, and the weights each piece started from.
        """
        outputs: list[Tensor] = []
        starts: list[Weights] = []
        below = tensors_of(state, "below.")
        for number, (part, now) in enumerate(place.pieces(self.segment)):
            if self.share is not None:
                state, below = self._added(state, below, now, place.below[number], self.share)
            starts.append(memory_of(state).memory)
            y, state = mixer(x[:, part], state, now)
            outputs.append(y)
        return torch.cat(outputs, 1), state | {f"below.{n}": w for n, w in below.items()}, tuple(starts)

    def _added(self, state: State, old: Weights, place: Place, new: Weights, share: Tensor) -> tuple[State, Weights]:
        """The state with what is below in it, for the rows that start a segment, and what that now is."""
        begins = [s % self.segment == 0 for s in place.seen]  # a row without tokens here adds nothing a second time
        if not any(begins):
            return state, old
        rows = torch.tensor(begins, device=share.device)
        below = {n: torch.where(rows.view(-1, *[1] * (w.dim() - 1)), new[n], w) for n, w in old.items()}

        def plus(weights: Weights) -> Weights:
            return {
                n: w + share.to(w.dtype).view(-1, *[1] * (w.dim() - 2)) * (below[n] - old[n])
                for n, w in weights.items()
            }

        memory = memory_of(state)
        return state | {"memory": memory._replace(memory=plus(memory.memory), anchor=plus(memory.anchor))}, below

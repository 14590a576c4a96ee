"""What a segment does to a memory before any gradient is known: lower-triangular matrices from the gates alone.

Shapes: n tokens, P pairs (replayed ones first), K slots, B batch, H heads, ... those or more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.filters import last_row, propagator, shift_down
from miras.spec import MirasSpec
from miras.state import Weights


class Coefficients(NamedTuple):
    """``A_t = carry_t A_0 - slots_t S - sum_p pairs_tp g_p``, ``S_end = slot_slot S + slot_pairs g``."""

    decay: Tensor  # [B, H, n, n]: the retention's propagator alone
    carry: Tensor  # [B, H, n]
    updates: Tensor | None  # [.., n, P]: pairs to updates; None is the identity
    update_slots: Tensor | None  # [.., n, K]: slots to updates
    pairs: Tensor  # [B, H, n, P]
    slots: Tensor | None  # [B, H, n, K]
    end_mix: Tensor  # [B, H, 1 + K, 1 + K]: memory and slots at the end from those at the start
    end_pairs: Tensor  # [B, H, 1 + K, P]: and from the pairs

    def previous(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Carry, pairs and slots of ``A_{t-1}``."""
        slots = None if self.slots is None else shift_down(self.slots, 0.0, -2)
        return shift_down(self.carry, 1.0, -1), shift_down(self.pairs, 0.0, -2), slots


def coefficients(spec: MirasSpec, gates: Weights, like: Tensor, pairs: int, last: bool = False) -> Coefficients:
    """The coefficients of a segment from its gates ``[..., n]``; ``like`` is ``[..., n]`` too.

    ``last``: those of the last token alone, one in the place of n, where no token reads what others of its segment wrote.
    """
    log_decay = gates["log_decay"] if "log_decay" in gates else torch.zeros_like(like)
    decay, carry = last_row(log_decay) if last else propagator(log_decay)
    mix = _mix(spec, gates, like, pairs)
    if not spec.algorithm.slots:
        through = decay if mix is None else decay @ mix
        return Coefficients(decay, carry, mix, None, through, None, carry[..., -1:, None], -through[..., -1:, :])
    f = spec.algorithm.filter(like.shape[-1], gates)
    updates, slot_pairs = (f.out_in, f.slot_in) if mix is None else (f.out_in @ mix, f.slot_in @ mix)
    through, slots = decay @ updates, decay @ f.out_slot
    batch = carry.shape[:-1]
    memory_row = torch.cat([carry[..., -1:], -slots[..., -1, :]], -1).unsqueeze(-2)
    slot_rows = F.pad(f.slot_slot, (1, 0)).expand(*batch, -1, -1)
    end_pairs = torch.cat([-through[..., -1:, :], slot_pairs.expand(*batch, -1, -1)], -2)
    return Coefficients(
        decay, carry, updates, f.out_slot, through, slots, torch.cat([memory_row, slot_rows], -2), end_pairs
    )


def side_by_side(c: Coefficients, m: int) -> list[Coefficients]:
    """Coefficients of m segments side by side in dim 2; what has no batch is shared."""
    batched = c.carry.dim()
    fields = [[t] * m if t is None or t.dim() < batched else list(t.unbind(2)) for t in c]
    return [Coefficients(*row) for row in zip(*fields, strict=True)]


def _mix(spec: MirasSpec, gates: Weights, like: Tensor, pairs: int) -> Tensor | None:
    """Which pairs make up a token's gradient, ``[.., n, P]``."""
    n, window = like.shape[-1], spec.algorithm.window
    if window == 1 and pairs == 1 and not spec.algorithm.lr_is_row:
        return None
    age = (window - 1 + torch.arange(n, device=like.device))[:, None] - torch.arange(window - 1 + n, device=like.device)
    band = ((age >= 0) & (age < window)).to(like.dtype).repeat_interleave(pairs, 1)
    if spec.algorithm.lr_is_row:
        band = band * gates["lr"][..., None]
    return band

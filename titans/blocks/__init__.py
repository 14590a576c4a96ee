"""Mixers: what a block does between tokens."""

from titans.blocks._base import Gating, Mixer, Persistent, State
from titans.blocks._mac import MAC
from titans.blocks._parallel import MAG, Parallel
from titans.blocks._single import LMM, MAL, SelfAttention

__all__ = ["LMM", "MAC", "MAG", "MAL", "Gating", "Mixer", "Parallel", "Persistent", "SelfAttention", "State"]

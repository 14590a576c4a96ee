"""What a model costs, counted on the meta device: nothing is allocated, nothing computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from titans.config import TitansConfig
from titans.model import TitansLM


@dataclass(frozen=True)
class Cost:
    """Numbers of a model; ``print`` it.

    Attributes:
        parameters: all of them.
        embedding: those of the embedding, and of the head if it is not tied.
        flops: of the forward pass for one token: matrix products and attention, averaged over the sequence.
        cache_bytes: of the cache of one row after the sequence.
    """

    parameters: int
    embedding: int
    flops: int
    cache_bytes: int

    def __str__(self) -> str:
        return (
            f"parameters {self.parameters / 1e6:.1f}M ({self.embedding / 1e6:.1f}M embedding)\n"
            f"forward    {self.flops / 1e6:.1f} MFLOP a token\n"
            f"cache      {self.cache_bytes / 2**20:.2f} MiB a row"
        )


def cost(config: TitansConfig, tokens: int = 512) -> Cost:
    """Counts a model on a sequence of that many tokens.

    Example:
        >>> from titans import preset
        >>> cost(preset("tiny", "memory"), tokens=64).cache_bytes == cost(
        ...     preset("tiny", "memory"), tokens=128
        ... ).cache_bytes
        True
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where that is installed

    with torch.device("meta"), torch.no_grad():
        model = TitansLM(config).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            hidden, cache = model.hidden(torch.empty(1, tokens, dtype=torch.long))
            model.logits(hidden)
    embedding = model.embedding.weight.numel() * (1 if config.tied else 2)
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, embedding, counter.get_total_flops() // tokens, cache.nbytes)

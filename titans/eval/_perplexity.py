"""How well a model predicts text: bits per byte, perplexity, and the loss by position.

Shapes: N segments, L tokens of a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from titans.eval._interval import Interval, quantile
from titans.eval._stream import losses
from titans.model import TitansLM


@dataclass(frozen=True)
class Likelihood:
    """Losses of segments that were each read from a fresh memory.

    Attributes:
        nats: mean loss of every segment ``[N]``.
        by_position: mean over segments ``[L]``.
        bytes_per_token: of the text.
    """

    nats: Tensor
    by_position: Tensor
    bytes_per_token: float

    @property
    def bits_per_byte(self) -> Interval:
        """With Student's 95% interval of the mean over segments (NaN if there is one)."""
        bits = self.nats.double() / (math.log(2) * self.bytes_per_token)
        n = len(bits)
        half = quantile(n - 1) * float(bits.std()) / math.sqrt(n) if n > 1 else math.nan
        return Interval(float(bits.mean()), float(bits.mean()) - half, float(bits.mean()) + half)

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(float(self.nats.double().mean()))

    def curve(self, points: int = 24) -> list[tuple[int, float]]:
        """Bits per byte by position: the mean over spans of positions that grow geometrically, and where each ends."""
        length = len(self.by_position)
        ends = sorted({max(1, round(length ** (i / points))) for i in range(1, points + 1)})
        bits = self.by_position.double() / (math.log(2) * self.bytes_per_token)
        return [(b, float(bits[a:b].mean())) for a, b in zip([0, *ends], ends, strict=False)]


def likelihood(
    model: TitansLM,
    tokens: Tensor,
    *,
    length: int,
    segments: int | None = None,
    rows: int = 8,
    chunk: int = 2048,
    bytes_per_token: float = 1.0,
) -> Likelihood:
    """Reads segments of a text, ``rows`` at a time, each in pieces with its state carried: any length in the same memory.

    Args:
        model: the model, in evaluation mode.
        tokens: the text ``[n]``.
        length: L, predictions of a segment.
        segments: N, spread evenly over the text; None for all that fit.
        rows: segments side by side.
        chunk: tokens that are read at a time.
        bytes_per_token: of the text, on average.

    Example:
        >>> from titans import TitansLM, TitansConfig
        >>> config = TitansConfig(vocabulary=4, dim=16, layers=("memory",), memory_heads=2, initializer=1e-6)
        >>> found = likelihood(TitansLM(config), torch.arange(1000) % 4, length=50)
        >>> round(found.bits_per_byte.value, 2), len(found.nats)
        (2.0, 19)
    """
    for name, value in (("length", length), ("segments", segments), ("rows", rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    fit = (len(tokens) - 1) // length
    if tokens.dim() != 1 or fit < 1:
        raise ValueError(f"tokens must be one text of more than length={length} tokens, got {tuple(tokens.shape)}")
    chosen = torch.linspace(0, fit - 1, min(segments or fit, fit), dtype=torch.float64).long() * length
    means, total = [], torch.zeros(length)
    for begins in chosen.split(rows):
        found = losses(model, torch.stack([tokens[b : b + length + 1] for b in begins.tolist()]).long(), chunk)
        means.append(found.mean(1))
        total += found.sum(0)
    return Likelihood(torch.cat(means), total / len(chosen), bytes_per_token)

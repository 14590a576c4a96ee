"""The same weights under another chunk size: another function, and how far it is from the trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from titans.model import TitansLM

T = TypeVar("T")


def with_chunk(model: TitansLM, size: int) -> TitansLM:
    """A model with the weights of ``model`` whose memories take ``size`` tokens a chunk.

    The chunk size is part of what is computed: a published model trained at 64 went from perplexity 13.8 to 36.5 at 8
    (arXiv 2511.07343 Fig. 2).
    """
    spec = replace(model.config.memory, chunk_size=size, anchor_lag=min(model.config.memory.anchor_lag, size - 1))
    other = TitansLM(replace(model.config, memory=spec)).to(model.embedding.weight)
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


def by_chunk(model: TitansLM, sizes: Sequence[int], measure: Callable[[TitansLM], T]) -> dict[int, T]:
    """What ``measure`` says of the same weights at every chunk size."""
    return {size: measure(with_chunk(model, size)) for size in sizes}

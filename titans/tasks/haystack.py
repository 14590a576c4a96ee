"""Text in which facts are hidden."""

from __future__ import annotations

import itertools
import lzma
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path

import numpy as np

NOISE = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
"""What passkey tests repeat (arXiv 2305.16300 and RULER's first form)."""


@lru_cache(maxsize=4)
def read(text: str | None) -> bytes:
    """The bytes of a file, decompressed if its name ends in ``.xz``, on one line; endless noise for None."""
    if text is None:
        return NOISE
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"text must be a file to hide facts in, or None for repeated sentences; there is no {text!r}")
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return raw.replace(b"\0", b"").replace(b"\n", b" ")


def window(text: str | None, size: int, rng: np.random.Generator) -> bytes:
    """``size`` bytes that begin with a sentence, somewhere in the text; a shorter text is repeated."""
    source = read(text)
    begin = source.find(b". ", int(rng.integers(len(source)))) + 2  # not found: the beginning, nearly
    part = source[begin : begin + size]
    while len(part) < size:
        part += source[: size - len(part)]
    return part


def hide(
    facts: list[bytes], size: int, text: str | None, rng: np.random.Generator, depth: float | None = None
) -> bytes:
    """A haystack of ``size`` bytes, facts included, which stand in their order between sentences.

    Args:
        facts: sentences, each with the space after it.
        size: bytes altogether.
        text: a file, or None for noise.
        rng: where and what.
        depth: of the facts in [0, 1]; None draws a place for each.
    """
    hay = window(text, size - sum(map(len, facts)), rng)
    ends = [0] + [i + 2 for i in range(len(hay) - 1) if hay[i : i + 2] == b". "]
    depths = np.sort(rng.random(len(facts))) if depth is None else np.full(len(facts), depth)
    places = [ends[min(bisect_left(ends, d * len(hay)), len(ends) - 1)] for d in depths.tolist()]
    cuts = [0, *places, len(hay)]
    parts = [hay[a:b] for a, b in itertools.pairwise(cuts)]
    return parts[0] + b"".join(fact + part for fact, part in zip(facts, parts[1:], strict=True))

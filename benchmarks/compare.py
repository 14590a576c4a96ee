"""Compare candidates in alternating runs, so that a slow burst of the machine hits all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import meter

Answer = dict[str, Any]
Runs = dict[str, dict[str, list[Answer]]]
"""Answers by candidate and mode, one for each round."""

MODES = ("forward", "train")


def alternate(candidates: Mapping[str, Callable[[str], Answer]], rounds: int) -> Runs:
    """Call every candidate in every mode, round after round."""
    runs: Runs = {name: {mode: [] for mode in MODES} for name in candidates}
    for _ in range(rounds):
        for mode in MODES:
            for name, candidate in candidates.items():
                runs[name][mode].append(candidate(mode))
    return runs


def times(answers: Sequence[Answer]) -> dict[str, float]:
    """The spread of the milliseconds of all rounds."""
    return meter.spread([sample for answer in answers for sample in answer["samples"]])


def speedup(slow: Sequence[Answer], fast: Sequence[Answer]) -> dict[str, float]:
    """How many times faster: by the medians of every round, and by the minima of all rounds."""
    by_round = [
        statistics.median(a["samples"]) / statistics.median(b["samples"]) for a, b in zip(slow, fast, strict=True)
    ]
    return {
        "median": statistics.median(by_round),
        "least": min(by_round),
        "most": max(by_round),
        "of minima": times(slow)["min"] / times(fast)["min"],
    }


def working_set(answers: Sequence[Answer]) -> float:
    """MiB at the peak above what importing the libraries left."""
    return max(answer["peak"] - answer["baseline"] for answer in answers)

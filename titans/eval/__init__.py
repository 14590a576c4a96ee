"""Evaluation that reads any length in constant memory, and says how sure its numbers are."""

from titans.eval._accuracy import Accuracy, accuracy, growing
from titans.eval._chunks import by_chunk, with_chunk
from titans.eval._interval import Interval, over_seeds, wilson
from titans.eval._perplexity import Likelihood, likelihood
from titans.eval._stream import answers, losses

__all__ = [
    "Accuracy",
    "Interval",
    "Likelihood",
    "accuracy",
    "answers",
    "by_chunk",
    "growing",
    "likelihood",
    "losses",
    "over_seeds",
    "wilson",
    "with_chunk",
]

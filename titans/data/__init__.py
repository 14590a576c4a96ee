"""Where tokens come from."""

from titans.data._base import IGNORED, Batch, Source, inputs, labels, take

__all__ = ["IGNORED", "Batch", "Source", "inputs", "labels", "take"]

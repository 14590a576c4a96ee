"""Measured claims: `python -m benchmarks.cpu` prints them, each beside the bar it must pass."""

"""Mutation testing of the engine: ``python -m tests.mutants``."""

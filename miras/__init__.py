"""Test-time memory: any sequence layer that learns while it reads, as a product of four choices."""

from miras.algorithms import algorithms
from miras.architectures import architectures, from_module
from miras.associative import AssociativeMemory
from miras.biases import biases
from miras.memory import Memory
from miras.retentions import retentions
from miras.spec import MirasSpec, compatible
from miras.state import MemoryState
from miras.surroundings import Surroundings

__all__ = [
    "AssociativeMemory",
    "Memory",
    "MemoryState",
    "MirasSpec",
    "Surroundings",
    "algorithms",
    "architectures",
    "biases",
    "compatible",
    "from_module",
    "retentions",
]

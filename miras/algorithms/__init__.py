r"""The fourth axis: the memory algorithm, how gradients become an update of the fast weights.

Almost every algorithm is a *linear filter* of the gradients with a few slots, which over a chunk is one
lower-triangular matrix; the rest change one place of the pipeline each: the error (`implicit`, `dgd`), the key that is
written along or the query (`newton`), the pairs whose gradients are taken (`omega`, `multi_step`), or the direction of
the update (`muon`).
"""

from miras.algorithms._base import Algorithm, algorithms
from miras.algorithms._chunks import ChunkStep, MiniBatch
from miras.algorithms._errors import DGD, Implicit
from miras.algorithms._filters import FIR, GD, QHM, AggMo, Momentum, Nesterov
from miras.algorithms._muon import Muon, newton_schulz
from miras.algorithms._newton import Newton
from miras.algorithms._pairs import MultiStep, Omega

__all__ = [
    "DGD",
    "FIR",
    "GD",
    "QHM",
    "AggMo",
    "Algorithm",
    "ChunkStep",
    "Implicit",
    "MiniBatch",
    "Momentum",
    "MultiStep",
    "Muon",
    "Nesterov",
    "Newton",
    "Omega",
    "algorithms",
    "newton_schulz",
]

r"""The third axis: retention, what happens to old memories.

The engine keeps the memory in dual coordinates $A$, where every retention gate of the paper is the
same linear recurrence $A_t=\alpha_tA_{t-1}-U_t$ followed by a read-out map $W_t=\mathrm{link}(A_t)$
(mirror descent, FTRL). What cannot be written so is a `commit` at the end of a chunk. Constants a
link needs from the past come in a `Context`.
"""

from miras.retentions._base import Context, Retention, retentions
from miras.retentions._bregman import Exponentiated, Logistic, Tanh
from miras.retentions._elastic_net import ElasticNet
from miras.retentions._linear import L2Decay, NoRetention
from miras.retentions._lq import Lq
from miras.retentions._simplex import FDivergence, KLDecay
from miras.retentions._sphere import Orthogonal, WeightNorm

__all__ = [
    "Context",
    "ElasticNet",
    "Exponentiated",
    "FDivergence",
    "KLDecay",
    "L2Decay",
    "Logistic",
    "Lq",
    "NoRetention",
    "Orthogonal",
    "Retention",
    "Tanh",
    "WeightNorm",
    "retentions",
]

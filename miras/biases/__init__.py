r"""The second axis: the attentional bias, the inner loss between the memory's answer and the value.

A bias only ever changes the error at the memory's output, $d=\partial\ell/\partial p$; the gradient
of every fast weight follows from it. A new bias is therefore a ``loss``; a closed-form ``residual``
is optional. Throughout, $p$ is the prediction, $v$ the target, $r=p-v$ the error of one token.
"""

from miras.biases._affine import L2, Dot, Feedback
from miras.biases._base import AttentionalBias, biases
from miras.biases._invariant import KL, Cosine
from miras.biases._power import L1, LogCosh, Lp
from miras.biases._robust import Huber, HuberNorm, ValueShift, Yaad

__all__ = [
    "KL",
    "L1",
    "L2",
    "AttentionalBias",
    "Cosine",
    "Dot",
    "Feedback",
    "Huber",
    "HuberNorm",
    "LogCosh",
    "Lp",
    "ValueShift",
    "Yaad",
    "biases",
]

"""A third party's bias: a loss is all it takes."""

from dataclasses import dataclass

from torch import Tensor

from miras.biases import AttentionalBias, biases


@biases.register("cauchy")
@dataclass(frozen=True)
class Cauchy(AttentionalBias):
    r"""The loss of Cauchy noise, $\sum_j\tfrac12\log(1+r_j^2)$: the larger an error, the less it writes."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (prediction - target).square().log1p().sum(-1)

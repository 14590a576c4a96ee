r"""Any memory behind a fixed feature map of keys and queries.

Shapes: ``x`` is ``[..., T, d_key]``, its features ``[..., T, F]``, an answer and its error ``[..., T, d_value]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from miras.architectures._base import Architecture, FastWeight, Tap, View, architectures, same_width
from miras.architectures._features import FeatureMap
from miras.architectures._gated import GatedMLP
from miras.architectures._mlp import MLP, RESIDUAL, LowRank
from miras.architectures._simple import Matrix


@architectures.register("on_features")
@dataclass(frozen=True)
class OnFeatures(Architecture):
    r"""A memory of features, $\mathcal M(W;x)=\mathcal M'(W;\phi(x))$, or $x+\mathcal M'(W;\phi(x))$ with ``residual``.

    Polynomial features raise what a deep memory can hold as they do for a matrix (ATLAS, arXiv 2505.23735);
    truncated exponential ones make the deep memories of DeepTransformers and Dot (there Eq. 22-31). Matrices that read
    the key read the $F=\binom{d_k+p}{p}$ features instead; hidden widths stay those of the key.

    Args:
        map: a `FeatureMap`, of which only $\phi$ is used.
        inner: the memory $\mathcal M'$: a ``matrix``, ``low_rank``, ``mlp`` or ``gated_mlp`` without ``residual``.
        residual: add the key itself to the answer; needs ``d_key == d_value``.

    Raises:
        ValueError: for another map, or an inner memory that uses the key otherwise than through its first matrices.
    """

    map: FeatureMap = FeatureMap(kind="polynomial")
    inner: Architecture = MLP(residual=False, norm=False)
    residual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", architectures.build(self.map))
        object.__setattr__(self, "inner", architectures.build(self.inner))
        if not isinstance(self.map, FeatureMap):
            raise ValueError(f"{self.name}: map must be a feature_map, got {self.map!r}")
        if not isinstance(self.inner, (Matrix, LowRank, MLP, GatedMLP)) or getattr(self.inner, "residual", False):
            raise ValueError(
                f"{self.name}: inner must be a matrix, low_rank, mlp or gated_mlp without residual (on_features has its "
                f"own), got {self.inner!r}"
            )

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        return self.inner.is_linear and not self.residual

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        if self.residual:
            same_width(self, d_key, d_value, RESIDUAL, "residual=False")
        features = self.map.shapes(d_key, d_value)["w"]

        def widened(w: FastWeight) -> FastWeight:
            shape = (features.shape[0], *w.shape[1:]) if w.reads_key else w.shape
            return w._replace(shape=shape, reads_key=w.reads_key and features.reads_key)

        return {n: widened(w) for n, w in self.inner.shapes(d_key, d_value).items()}

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.map.features(x))

    def forward(self, w: View, x: Tensor) -> Tensor:
        y = self.inner.forward(w, self.map.features(x))
        return x + y if self.residual else y

    def tap(self, w: View, x: Tensor) -> Tap:
        tap = self.inner.tap(w, self.map.features(x))
        return tap._replace(prediction=x + tap.prediction) if self.residual else tap

r"""Any memory behind a fixed feature map of keys and queries.

Shapes: ``x`` is ``[..., T, d_key]``, its features ``[..., T, F]``, an answer and its error ``[..., T, d_value]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from miras.architectures._base import Architecture, FastWeight, Tap, View, architectures, same_width
from miras.architectures._features import FeatureMap
from miras.architectures._mlp import MLP, RESIDUAL


@architectures.register("on_features")
@dataclass(frozen=True)
class OnFeatures(Architecture):
    r"""A memory of features, $\mathcal M(W;x)=\mathcal M'(W;\phi(x))$, or $x+\mathcal M'(W;\phi(x))$ with ``residual``.

    Polynomial features raise what a deep memory can hold as they do for a matrix (ATLAS, arXiv 2505.23735);
    truncated exponential ones make the deep memories of DeepTransformers and Dot (there Eq. 22-31). The inner memory's
    widths follow the number of features, $F=\binom{d_k+p}{p}$ at degree $p$.

    Args:
        map: a `FeatureMap`, of which only $\phi$ is used.
        inner: the memory $\mathcal M'$, from $F$ features to the value.
        residual: add the key itself to the answer; needs ``d_key == d_value``.
    """

    map: FeatureMap = FeatureMap(kind="polynomial")
    inner: Architecture = MLP(residual=False, norm=False)
    residual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", architectures.build(self.map))
        object.__setattr__(self, "inner", architectures.build(self.inner))
        if not isinstance(self.map, FeatureMap):
            raise ValueError(f"{self.name}: map must be a feature_map, got {self.map!r}")

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        return self.inner.is_linear and not self.residual

    @property
    def has_matrices(self) -> bool:  # type: ignore[override]
        return self.inner.has_matrices

    def shapes(self, d_key: int, d_value: int) -> dict[str, FastWeight]:
        if self.residual:
            same_width(self, d_key, d_value, RESIDUAL, "residual=False")
        features = self.map.shapes(d_key, d_value)["w"]
        inner = self.inner.shapes(features.shape[0], d_value)
        return {n: w._replace(reads_key=w.reads_key and features.reads_key) for n, w in inner.items()}

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.map.features(x))

    def forward(self, w: View, x: Tensor) -> Tensor:
        y = self.inner.forward(w, self.map.features(x))
        return x + y if self.residual else y

    def tap(self, w: View, x: Tensor) -> Tap:
        tap = self.inner.tap(w, self.map.features(x))
        return tap._replace(prediction=x + tap.prediction) if self.residual else tap

"""The first axis: what kind of function the memory is. One idea a file; `Architecture` is the contract."""

from miras.architectures._base import (
    Architecture,
    FastWeight,
    Tap,
    View,
    architectures,
    generic_tap,
)
from miras.architectures._calculus import ACTIVATIONS, layer_norm, layer_norm_tap
from miras.architectures._features import FeatureMap
from miras.architectures._gated import GatedMLP, GatedResidualMLP
from miras.architectures._mlp import MLP, LowRank
from miras.architectures._module import FromModule, from_module
from miras.architectures._on_features import OnFeatures
from miras.architectures._simple import Matrix, Slots, Vector

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Architecture",
    "FastWeight",
    "FeatureMap",
    "FromModule",
    "GatedMLP",
    "GatedResidualMLP",
    "LowRank",
    "Matrix",
    "OnFeatures",
    "Slots",
    "Tap",
    "Vector",
    "View",
    "architectures",
    "from_module",
    "generic_tap",
    "layer_norm",
    "layer_norm_tap",
]

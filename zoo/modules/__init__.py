"""Layers of several memories: composition only, each called, split and stepped like a `miras.Memory`."""

from zoo.modules.attention import SoftmaxAttention
from zoo.modules.hope import Hope, OwnGates
from zoo.modules.tnt import TNT
from zoo.modules.trellis import Coded, Trellis

__all__ = ["TNT", "Coded", "Hope", "OwnGates", "SoftmaxAttention", "Trellis"]

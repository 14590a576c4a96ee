"""Layers of several memories: composition only, each called, split and stepped like a `miras.Memory`."""

from zoo.modules.attention import SoftmaxAttention
from zoo.modules.hope import Hope, OwnGates
from zoo.modules.tnt import TNT

__all__ = ["TNT", "Hope", "OwnGates", "SoftmaxAttention"]

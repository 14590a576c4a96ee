"""The norm of all layers."""

from __future__ import annotations

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` in the precision of its gain: under autocast, the stream stays as precise as the weights."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` in and out."""
        return super().forward(x.to(self.weight.dtype))

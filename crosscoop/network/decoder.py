"""The decoder (Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611)."""

import torch
from torch import Tensor, nn

from crosscoop.network.layers import ConvNormAct, resize


class Decoder(nn.Module):
    """Three layers that refine the context with the detail of `low`.

    Args:
        low_channels: Channels of `low`.
        channels: Channels of the context and of the output.
        projected_channels: Channels that `low` is projected to.
        separable: Use depthwise-separable 3x3 convolutions.
    """

    def __init__(
        self, low_channels: int, channels: int = 256, projected_channels: int = 48, separable: bool = False
    ) -> None:
        super().__init__()
        self.projected_channels = projected_channels
        self.project = ConvNormAct(low_channels, projected_channels)
        self.first = ConvNormAct(projected_channels + channels, channels, 3, separable=separable)
        self.second = ConvNormAct(channels, channels, 3, separable=separable)

    def join(self, detail: Tensor, context: Tensor) -> Tensor:
        """Apply the first convolution to the projected `low` and the context, upsampled to its size."""
        feature: Tensor = self.first(torch.cat([detail, resize(context, detail.shape[-2:])], dim=1))
        return feature

"""Atrous spatial pyramid pooling (Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosscoop.network.layers import ConvNormAct, resize


class ImagePooling(nn.Module):
    """The image-level layer of ASPP: global average pooling, 1x1 convolution, upsampling to the map's size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels)

    def forward(self, high: Tensor) -> Tensor:
        """Pool `(N, in_channels, H, W)` into `(N, out_channels, H, W)`."""
        return resize(self.conv(high.mean((2, 3), keepdim=True)), high.shape[-2:])


class ASPP(nn.Module):
    """Five parallel layers whose outputs are concatenated and projected.

    Args:
        in_channels: Channels of `high`.
        out_channels: Channels of each layer and of the output.
        rates: Atrous rates of the three 3x3 layers: 6, 12, 18 at output stride 16, doubled at 8.
        separable: Use depthwise-separable 3x3 convolutions.
    """

    layers: Sequence[nn.Module]

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            [
                ConvNormAct(in_channels, out_channels),
                *(ConvNormAct(in_channels, out_channels, 3, rate, separable) for rate in rates),
                ImagePooling(in_channels, out_channels),
            ]
        )
        self.project = ConvNormAct(len(self.layers) * out_channels, out_channels)

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Concatenate and project the layers' outputs, each `(N, out_channels, H, W)`."""
        context: Tensor = self.project(torch.cat(list(features), dim=1))
        return context

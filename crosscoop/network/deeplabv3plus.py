"""DeepLabV3+ (the paper's figure 3; Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosscoop.network.backbone import Backbone, SummedBackbones
from crosscoop.network.branch import Branch, Point, Walk
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


class DeepLabV3Plus(Branch):
    """Backbone, ASPP, decoder and classifier, with the exchange points of the paper.

    Args:
        backbone: Computes `low` and `high`.
        num_classes: Channels of the logits.
        channels: Channels of ASPP and decoder.
        separable: Use depthwise-separable 3x3 convolutions in ASPP and decoder.
        atrous_rates: Rates of ASPP's three 3x3 convolutions at output stride 16; doubled at 8.
    """

    def __init__(
        self,
        backbone: Backbone | SummedBackbones,
        num_classes: int,
        channels: int = 256,
        separable: bool = False,
        atrous_rates: Sequence[int] = (6, 12, 18),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        rates = [rate * 16 // backbone.stride for rate in atrous_rates]
        self.aspp = ASPP(backbone.high_channels, channels, rates, separable)
        self.decoder = Decoder(backbone.low_channels, channels, separable=separable)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.points = [
            Point("connection1", "connection1", backbone.high_channels),
            *(Point(f"aspp{i + 1}", "aspp", channels) for i in range(len(self.aspp.layers))),
            Point("connection2", "connection2", channels),
            Point("decoder1", "decoder", self.decoder.projected_channels),
            Point("decoder2", "decoder", channels),
            Point("decoder3", "decoder", channels),
        ]

    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        """Segment an image step by step; see `Branch.walk`. Without `upsample`, the logits have stride 4."""
        low, high = self.backbone(image)
        high = yield high
        pointwise = yield self.aspp.layers[0](high)  # one by one: before torch 2.13, Dynamo cannot send into a loop
        near = yield self.aspp.layers[1](high)
        middle = yield self.aspp.layers[2](high)
        far = yield self.aspp.layers[3](high)
        pooled = yield self.aspp.layers[4](high)
        context = yield self.aspp.join([pointwise, near, middle, far, pooled])
        detail = yield self.decoder.project(low)
        feature = yield self.decoder.join(detail, context)
        feature = yield self.decoder.second(feature)
        yield resize(self.classifier(feature), (image if upsample else feature).shape[-2:])

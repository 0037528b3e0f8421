"""DeepLabV3+ as mmsegmentation builds it (https://github.com/open-mmlab/mmsegmentation)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosscoop.network.backbone import Backbone, SummedBackbones
from crosscoop.network.branch import Branch, Point, Walk
from crosscoop.network.deeplabv3plus import ASPP
from crosscoop.network.layers import BatchNorm2d, ConvNormAct, DepthwiseConv2d, resize
from crosscoop.network.smp import renamed


class SeparableConv(nn.Sequential):
    """Depthwise and pointwise convolution, each with batch norm and ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        rate: Atrous rate.
    """

    def __init__(self, in_channels: int, out_channels: int, rate: int = 1) -> None:
        depthwise = DepthwiseConv2d(in_channels, rate)
        nn.init.kaiming_normal_(depthwise.weight, nonlinearity="relu")
        super().__init__(
            depthwise, BatchNorm2d(in_channels), nn.ReLU(inplace=True), ConvNormAct(in_channels, out_channels)
        )


class MmsegDeepLabV3Plus(Branch):
    """DeepLabV3+ with the layers of mmsegmentation's `DepthwiseSeparableASPPHead`, for weights trained there.

    Compared with `DeepLabV3Plus`, batch norm and ReLU also follow the depthwise convolutions, the projection of ASPP is
    a 3x3 convolution, and the rates are the same at each output stride. The backbone of `deeplabv3plus_r101-d8` is
    timm's `resnet101c` at output stride 8.

    Args:
        backbone: Computes `low` and `high`.
        num_classes: Channels of the logits.
        channels: Channels of ASPP and decoder.
        atrous_rates: Rates of ASPP's three 3x3 convolutions.
    """

    def __init__(
        self,
        backbone: Backbone | SummedBackbones,
        num_classes: int,
        channels: int = 512,
        atrous_rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.high_channels, channels, atrous_rates)
        for i, rate in enumerate(atrous_rates, 1):
            self.aspp.layers[i] = SeparableConv(backbone.high_channels, channels, rate)  # type: ignore[index]
        self.aspp.project = ConvNormAct(len(self.aspp.layers) * channels, channels, 3)
        self.project = ConvNormAct(backbone.low_channels, 48)
        self.join = SeparableConv(channels + 48, channels)
        self.second = SeparableConv(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.points = [
            Point("connection1", "connection1", backbone.high_channels),
            *(Point(f"aspp{i + 1}", "aspp", channels) for i in range(len(self.aspp.layers))),
            Point("connection2", "connection2", channels),
            Point("decoder1", "decoder", 48),
            Point("decoder2", "decoder", channels),
            Point("decoder3", "decoder", channels),
        ]

    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        """Segment an image step by step; see `Branch.walk`. Without `upsample`, the logits have stride 4."""
        low, high = self.backbone(image)
        high = yield high
        pointwise = yield self.aspp.layers[0](high)  # one by one, as in DeepLabV3Plus
        near = yield self.aspp.layers[1](high)
        middle = yield self.aspp.layers[2](high)
        far = yield self.aspp.layers[3](high)
        pooled = yield self.aspp.layers[4](high)
        context = yield self.aspp.join([pointwise, near, middle, far, pooled])
        detail = yield self.project(low)
        feature = yield self.join(torch.cat([resize(context, detail.shape[-2:]), detail], dim=1))
        feature = yield self.second(feature)
        yield resize(self.classifier(feature), (image if upsample else feature).shape[-2:])


def from_mmseg(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of mmsegmentation's `deeplabv3plus_r101` under the names of `MmsegDeepLabV3Plus`.

    Args:
        weights: The state dict; what belongs to no part of a branch, such as the auxiliary head, keeps its name.
    """
    names = {
        **{f"backbone.stem.{i}.": f"backbone.network.conv1.{i}." for i in range(7)},
        "backbone.stem.7.": "backbone.network.bn1.",
        "backbone.": "backbone.network.",
        **_module("decode_head.image_pool.1.", "aspp.layers.4.conv."),
        **_module("decode_head.aspp_modules.0.", "aspp.layers.0."),
        **_module("decode_head.bottleneck.", "aspp.project."),
        **_module("decode_head.c1_bottleneck.", "project."),
        "decode_head.conv_seg.": "classifier.",
    }
    layers = {f"aspp_modules.{i}.": f"aspp.layers.{i}." for i in (1, 2, 3)}
    for theirs, ours in {**layers, "sep_bottleneck.0.": "join.", "sep_bottleneck.1.": "second."}.items():
        names |= _module(f"decode_head.{theirs}depthwise_conv.", ours)
        names |= _module(f"decode_head.{theirs}pointwise_conv.", f"{ours}3.")
    found = renamed(weights, names)
    if (key := "aspp.project.0.weight") in found:  # there, the pooled map comes first
        pooled, others = found[key].tensor_split([found[key].shape[1] // 5], dim=1)
        found[key] = torch.cat([others, pooled], dim=1)
    return found


def _module(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}conv.": f"{ours}0.", f"{theirs}bn.": f"{ours}1."}

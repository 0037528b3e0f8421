"""DeepLabV3+ as segmentation_models.pytorch builds it (https://github.com/qubvel-org/segmentation_models.pytorch)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import interpolate

from crosscoop.network.backbone import Backbone, SummedBackbones
from crosscoop.network.branch import Branch, Point, Walk
from crosscoop.network.deeplabv3plus import ASPP
from crosscoop.network.layers import ConvNormAct


class SmpDeepLabV3Plus(Branch):
    """DeepLabV3+ with the layers of segmentation_models.pytorch, for weights trained there.

    Compared with `DeepLabV3Plus`, a 3x3 convolution follows ASPP and one is missing from the decoder, which therefore
    has two exchange points; maps are upsampled with aligned corners, and the rates are the same at each output stride.

    Args:
        backbone: Computes `low` and `high`.
        num_classes: Channels of the logits.
        channels: Channels of ASPP and decoder.
        separable: Use depthwise-separable 3x3 convolutions in ASPP; the others always are.
        atrous_rates: Rates of ASPP's three 3x3 convolutions.
    """

    def __init__(
        self,
        backbone: Backbone | SummedBackbones,
        num_classes: int,
        channels: int = 256,
        separable: bool = True,
        atrous_rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.high_channels, channels, atrous_rates, separable)
        self.refine = ConvNormAct(channels, channels, 3, separable=True)
        self.project = ConvNormAct(backbone.low_channels, 48)
        self.join = ConvNormAct(channels + 48, channels, 3, separable=True)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.points = [
            Point("connection1", "connection1", backbone.high_channels),
            *(Point(f"aspp{i + 1}", "aspp", channels) for i in range(len(self.aspp.layers))),
            Point("connection2", "connection2", channels),
            Point("decoder1", "decoder", 48),
            Point("decoder2", "decoder", channels),
        ]

    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        """Segment an image step by step; see `Branch.walk`. The logits always have the image's size."""
        low, high = self.backbone(image)
        high = yield high
        pointwise = yield self.aspp.layers[0](high)  # one by one, as in DeepLabV3Plus
        near = yield self.aspp.layers[1](high)
        middle = yield self.aspp.layers[2](high)
        far = yield self.aspp.layers[3](high)
        pooled = yield self.aspp.layers[4](high)
        context = yield self.refine(self.aspp.join([pointwise, near, middle, far, pooled]))
        detail = yield self.project(low)
        feature = yield self.join(torch.cat([_upsampled(context, detail.shape[-2:]), detail], dim=1))
        yield _upsampled(self.classifier(feature), image.shape[-2:])


def _upsampled(feature: Tensor, size: Size) -> Tensor:
    return interpolate(feature, size=size, mode="bilinear", align_corners=True)


def from_smp(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of smp's `DeepLabV3Plus` under the names of `SmpDeepLabV3Plus`.

    Args:
        weights: The state dict; what belongs to no part of a branch, such as a classification head, keeps its name.
    """
    names = {
        "encoder.model.": "backbone.network.",  # encoders from timm, tu-...
        "encoder.": "backbone.network.",
        "decoder.aspp.0.convs.0.": "aspp.layers.0.",
        "decoder.aspp.0.convs.4.1.": "aspp.layers.4.conv.0.",
        "decoder.aspp.0.convs.4.2.": "aspp.layers.4.conv.1.",
        "decoder.aspp.0.project.": "aspp.project.",
        **_separable("decoder.aspp.1.", "decoder.aspp.2.", "refine."),
        "decoder.block1.": "project.",
        **_separable("decoder.block2.0.", "decoder.block2.1.", "join."),
        "segmentation_head.0.": "classifier.",
    }
    for i in (1, 2, 3):
        layer = f"decoder.aspp.0.convs.{i}."
        separable = f"{layer}0.0.weight" in weights
        ours = f"aspp.layers.{i}."
        names |= _separable(f"{layer}0.", f"{layer}1.", ours) if separable else {layer: ours}
    return renamed(weights, names)


def _separable(convolutions: str, norm: str, ours: str) -> dict[str, str]:
    return {f"{convolutions}0.": f"{ours}0.", f"{convolutions}1.": f"{ours}1.", norm: f"{ours}2."}


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights whose names begin differently.

    Args:
        weights: The weights by name.
        names: The new beginning for each beginning; the first one that matches counts. Other names are kept.
    """
    found = {key: next((begin for begin in names if key.startswith(begin)), "") for key in weights}
    return {names.get(begin, "") + key.removeprefix(begin): weights[key] for key, begin in found.items()}

"""DeepLabV3+ (the paper's figure 3; Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611)."""

from collections.abc import Sequence

from torch import Tensor, nn

from crosscoop.network.aspp import ASPP
from crosscoop.network.backbone import Backbone
from crosscoop.network.branch import Branch, Point, Walk
from crosscoop.network.decoder import Decoder
from crosscoop.network.layers import resize
from crosscoop.network.summed import SummedBackbones


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

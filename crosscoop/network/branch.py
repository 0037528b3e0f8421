"""One branch: a complete DeepLabV3+ (the paper's figure 3)."""

from collections.abc import Sequence

from torch import Size, Tensor, nn

from crosscoop.network.aspp import ASPP
from crosscoop.network.backbone import Backbone
from crosscoop.network.decoder import Decoder
from crosscoop.network.layers import resize
from crosscoop.network.summed import SummedBackbones


class DeepLabV3Plus(nn.Module):
    """Backbone, ASPP, decoder and classifier; usable alone, and unaware that it may cooperate.

    Args:
        backbone: Gives `low` and `high`.
        num_classes: Channels of the logits.
        channels: Channels of ASPP and decoder.
        separable: Depthwise-separable 3x3 convolutions in ASPP and decoder.
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

    def forward(self, image: Tensor) -> Tensor:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)`."""
        low, high = self.backbone(image)
        context = self.aspp(high)
        feature = self.decoder(low, context)
        return self.classify(feature, image.shape[-2:])

    def classify(self, feature: Tensor, size: Size) -> Tensor:
        """Logits of a decoded feature, upsampled to the image's size."""
        return resize(self.classifier(feature), size)

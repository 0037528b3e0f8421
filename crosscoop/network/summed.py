"""Several backbones in front of one ASPP and decoder: a control that has two encoders but no cooperation."""

from collections.abc import Sequence

from torch import Tensor, nn

from crosscoop.network.backbone import Backbone
from crosscoop.network.layers import resize


class SummedBackbones(nn.Module):
    """Backbones whose features are summed, used as one backbone.

    The sums have as many channels as the widest backbone; 1x1 convolutions project features with fewer channels.

    Args:
        backbones: The backbones, with the same output stride.

    Attributes:
        low_channels: Channels of `low`.
        high_channels: Channels of `high`.
        stride: Stride of `high`.
        normalisation: Mean and standard deviation of each backbone, in order.
    """

    def __init__(self, backbones: Sequence[Backbone]) -> None:
        super().__init__()
        self.low_channels = max(backbone.low_channels for backbone in backbones)
        self.high_channels = max(backbone.high_channels for backbone in backbones)
        self.stride = backbones[0].stride
        self.normalisation = [each for backbone in backbones for each in backbone.normalisation]
        self.backbones = nn.ModuleList(backbones)
        self.lows = nn.ModuleList(_projection(backbone.low_channels, self.low_channels) for backbone in backbones)
        self.highs = nn.ModuleList(_projection(backbone.high_channels, self.high_channels) for backbone in backbones)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Extract features of `(N, 3, H, W)` RGB in [0, 1].

        Returns:
            `low` of `(N, low_channels, H/4, W/4)` and `high` of `(N, high_channels, H/stride, W/stride)`, in the
            sizes of the first backbone's features.
        """
        lows, highs = zip(*[backbone(image) for backbone in self.backbones], strict=True)
        return _sum(self.lows, lows), _sum(self.highs, highs)


def _projection(channels: int, wanted: int) -> nn.Module:
    return nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1, bias=False)


def _sum(projections: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    first, *others = [project(feature) for project, feature in zip(projections, features, strict=True)]
    total: Tensor = sum((resize(other, first.shape[-2:]) for other in others), first)
    return total

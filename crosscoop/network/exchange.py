"""An exchange of feature maps between top and bottom (the paper's figure 4)."""

from collections.abc import Sequence

from torch import Tensor, nn

from crosscoop.network.fusion import SYMMETRIC, FusionFactory
from crosscoop.network.layers import resize
from crosscoop.network.strategy import Strategy


class Connection(nn.Module):
    """A path into one branch: fit the received map to the own one, then fuse.

    Args:
        channels: Channels of the receiver's map.
        received_channels: Channels of the sender's map; a 1x1 convolution projects them where they differ.
        fusion: Makes the fusion operator.
        detach: Whether gradients stop here.
    """

    def __init__(self, channels: int, received_channels: int, fusion: FusionFactory, detach: bool) -> None:
        super().__init__()
        self.project = (
            nn.Identity() if channels == received_channels else nn.Conv2d(received_channels, channels, 1, bias=False)
        )
        self.fusion = fusion(channels)
        self.detach = detach

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Merge `received` into `own` `(N, channels, H, W)`."""
        received = received.detach() if self.detach else received
        merged: Tensor = self.fusion(own, resize(self.project(received), own.shape[-2:]))
        return merged


class Unconnected(nn.Module):
    """No path into the branch: it keeps its own map."""

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Return `own`."""
        return own


class Exchange(nn.Module):
    """One exchange point of top and bottom. Both receive the other's map from before the exchange.

    Args:
        channels: Channels of top's and of bottom's map.
        strategy: Its direction says who receives.
        fusion: Makes the fusion operators.
    """

    def __init__(self, channels: Sequence[int], strategy: Strategy, fusion: FusionFactory) -> None:
        super().__init__()
        top, bottom = channels
        self.to_top: nn.Module = Unconnected()
        self.to_bottom: nn.Module = Unconnected()
        if strategy.direction in ("both", "bottom_to_top"):
            self.to_top = Connection(top, bottom, fusion, strategy.detach)
        if strategy.direction in ("both", "top_to_bottom"):
            self.to_bottom = Connection(bottom, top, fusion, strategy.detach)
        symmetric = type(getattr(self.to_top, "fusion", None)) in SYMMETRIC
        self.shared = symmetric and top == bottom and strategy.direction == "both" and not strategy.detach

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Exchange the branches' maps, each `(N, C, H, W)`."""
        top, bottom = features
        merged = self.to_top(top, bottom)
        if self.shared and top.shape == bottom.shape:  # the sum is the same for both: computed and kept once
            return [merged, merged]
        return [merged, self.to_bottom(bottom, top)]


class NoExchange(nn.Module):
    """An exchange point that is not connected: every branch, however many, keeps its own map."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps."""
        return list(features)

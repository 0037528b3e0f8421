"""An exchange of feature maps among branches (the paper's figure 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network.fusion import SYMMETRIC, FusionFactory
from crosscoop.network.layers import resize
from crosscoop.network.strategy import Strategy


class Connection(nn.Module):
    """A connection from one branch to another: it adapts the received map to the receiver's own and fuses both.

    Args:
        channels: Channels of the receiver's map.
        received_channels: Channels of the sender's map; a 1x1 convolution projects them where they differ.
        fusion: Creates the fusion operator.
        strategy: Whether gradients stop here, and how often the connection is silent in training.
    """

    def __init__(self, channels: int, received_channels: int, fusion: FusionFactory, strategy: Strategy) -> None:
        super().__init__()
        self.project = (
            nn.Identity() if channels == received_channels else nn.Conv2d(received_channels, channels, 1, bias=False)
        )
        self.fusion = fusion(channels)
        self.detach, self.dropout = strategy.detach, strategy.dropout

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Merge `received` into `own` `(N, channels, H, W)`.

        Raises:
            CrosscoopError: The operator does not return a map of the receiver's shape.
        """
        received = received.detach() if self.detach else received
        merged: Tensor = self.fusion(own, resize(self.project(received), own.shape[-2:]))
        if not torch.compiler.is_compiling() and (not isinstance(merged, Tensor) or merged.shape != own.shape):
            shape = tuple(merged.shape) if isinstance(merged, Tensor) else f"a {type(merged).__name__}"
            raise CrosscoopError(
                f"network.fusion: got {shape} from {type(self.fusion).__name__}, expected a map of the receiver's "
                f"shape, {tuple(own.shape)}. Return it from forward."
            )
        if not (self.training and self.dropout):
            return merged
        silent = torch.rand(len(own), 1, 1, 1, device=own.device) < self.dropout
        return own.where(silent, merged)


class Receiver(nn.Module):
    """A branch at an exchange point: it merges the maps that it receives, in the senders' order.

    Args:
        connections: The connection from each sender, by the sender's index; empty for a branch that only sends.
    """

    connections: Sequence[Connection]

    def __init__(self, connections: dict[int, Connection]) -> None:
        super().__init__()
        self.senders = list(connections)
        self.connections = nn.ModuleList(connections.values())  # type: ignore[assignment]

    def forward(self, own: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Merge the senders' maps into `own`; `features` contains one map per branch."""
        for sender, connection in zip(self.senders, self.connections, strict=True):
            own = connection(own, features[sender])
        return own


class Exchange(nn.Module):
    """An exchange point of any number of branches. Each receives the others' maps from before the exchange.

    Args:
        channels: Channels of each branch's map.
        strategy: Its direction determines which branches receive from which.
        fusion: Creates the fusion operators.
    """

    receivers: Sequence[Receiver]

    def __init__(self, channels: Sequence[int], strategy: Strategy, fusion: FusionFactory) -> None:
        super().__init__()
        self.receivers = nn.ModuleList(  # type: ignore[assignment]
            Receiver(
                {
                    sender: Connection(own, received, fusion, strategy)
                    for sender, received in enumerate(channels)
                    if strategy.connects(sender, receiver)
                }
            )
            for receiver, own in enumerate(channels)
        )
        operators = [connection.fusion for receiver in self.receivers for connection in receiver.connections]
        symmetric = len(operators) == 2 and all(type(operator) in SYMMETRIC for operator in operators)
        self.shared = symmetric and channels[0] == channels[1] and not (strategy.detach or strategy.dropout)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Exchange the branches' maps, each `(N, C, H, W)`."""
        if self.shared and features[0].shape == features[1].shape:  # the same for both: computed and kept once
            return [self.receivers[0](features[0], features)] * 2
        return [receiver(own, features) for receiver, own in zip(self.receivers, features, strict=True)]

"""Fusion operators: how a received map is merged into the receiver's own map."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network.lookup import find


class Fusion(nn.Module, ABC):
    """The interface of a fusion operator; there is one instance per connection.

    Both maps have the receiver's channels and size. To define your own operator, write a subclass whose constructor
    takes `channels` first; further arguments come from `init_args` in YAML.

    Args:
        channels: Channels of both maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Merge `received` into `own`; both maps and the result are `(N, channels, H, W)`."""


class Add(Fusion):
    """`own + received`, the paper's operator. After an exchange in both directions, the branches carry one map."""

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Add the maps."""
        return own + received


class Average(Fusion):
    """`(own + received) / 2`, which keeps the scale of the maps."""

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Average the maps."""
        return (own + received) / 2


class Concat(Fusion):
    """`conv(concat(own, received))`: a 1x1 convolution with bias to the receiver's channels.

    It starts as the average, so that both pretrained backbones contribute from the first step.

    Args:
        channels: Channels of both maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        halves = torch.arange(channels)
        with torch.no_grad():
            self.conv.weight[halves, halves] = 0.5
            self.conv.weight[halves, halves + channels] = 0.5

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Concatenate and project."""
        merged: Tensor = self.conv(torch.cat([own, received], dim=1))
        return merged


class Gate(Fusion):
    """`own + gate(received) * received`: the receiver keeps its own map and weights each received channel.

    The gate is squeeze-and-excitation's (Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507): global mean, two 1x1
    convolutions, sigmoid. It starts near one half. Unlike with `add`, the branches carry different maps afterwards.

    Args:
        channels: Channels of both maps.
        reduction: Channels per hidden unit of the gate.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(channels)
        hidden = max(channels // reduction, 8)
        self.gate = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Weight the received map and add it."""
        merged: Tensor = own + self.gate(received.mean((2, 3), keepdim=True)).sigmoid() * received
        return merged


class CrossStitch(Fusion):
    """`a * own + b * received` with learned weights per channel for each map.

    The cross-stitch unit of Misra et al. (CVPR 2016, https://arxiv.org/abs/1604.03539). Initially, each branch
    receives little from the other.

    Args:
        channels: Channels of both maps.
        start: Initial weight of the received map; that of the own map is 1 - `start`.
    """

    def __init__(self, channels: int, start: float = 0.1) -> None:
        super().__init__(channels)
        self.own = nn.Parameter(torch.full((channels, 1, 1), 1 - start))
        self.received = nn.Parameter(torch.full((channels, 1, 1), start))

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Weight both maps and add them."""
        return self.own * own + self.received * received


class ChannelExchange(Fusion):
    """`where(exchanged, received, own)`: the received map in a share of the channels, the own map in the others.

    After the asymmetric fusion of Wang et al. (ACM MM 2020, https://arxiv.org/abs/2108.05009). The channels are drawn
    at random for each connection and saved with the weights.

    Args:
        channels: Channels of both maps.
        share: Share of the channels that are exchanged.

    Raises:
        CrosscoopError: The share is not above 0 and at most 1.
    """

    exchanged: Tensor

    def __init__(self, channels: int, share: float = 0.25) -> None:
        super().__init__(channels)
        if not 0 < share <= 1:
            raise CrosscoopError(f"network.fusion: got share {share}, expected a number above 0 and at most 1.")
        self.register_buffer("exchanged", torch.zeros(channels, 1, 1, dtype=torch.bool))
        self.exchanged[torch.randperm(channels)[: max(round(share * channels), 1)]] = True

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Take some channels from the received map."""
        return received.where(self.exchanged, own)


class Rectify(Fusion):
    """`own + (a + b) / 2 * received` with weights `a` per channel and `b` per pixel, computed from both maps.

    The feature rectification module of CMX (Zhang et al., 2022, https://arxiv.org/abs/2203.04838), for one receiver:
    `a` from the global mean and maximum of both maps, `b` from both maps by 1x1 convolutions.

    Args:
        channels: Channels of both maps.
        reduction: Channels per hidden unit of both weights.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(channels)
        hidden = max(channels // reduction, 8)
        self.by_channel = nn.Sequential(
            nn.Conv2d(4 * channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        self.by_pixel = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1)
        )

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        """Weight the received map and add it."""
        both = torch.cat([own, received], dim=1)
        pooled = torch.cat([both.mean((2, 3), keepdim=True), both.amax((2, 3), keepdim=True)], dim=1)
        weight: Tensor = (self.by_channel(pooled).sigmoid() + self.by_pixel(both).sigmoid()) / 2
        return own + weight * received


SYMMETRIC = (Add, Average)
"""Operators without weights whose result does not depend on which map is the receiver's own."""

FusionFactory = Callable[[int], Fusion]
"""What creates a fusion operator for a number of channels."""

FUSIONS: dict[str, FusionFactory] = {
    "add": Add,
    "average": Average,
    "concat": Concat,
    "gate": Gate,
    "cross_stitch": CrossStitch,
    "channel_exchange": ChannelExchange,
    "rectify": Rectify,
}
"""The fusion operators that the package provides, by name."""


def list_fusions() -> list[str]:
    """Return the names of the fusion operators that the package provides."""
    return list(FUSIONS)


def get_fusion(fusion: str | dict[str, Any] | FusionFactory) -> FusionFactory:
    """Return the fusion operator that a configuration names.

    Args:
        fusion: A name (`add`), a class path (`my_operators.Gate`), `{class_path: ..., init_args: {...}}`, or
            a callable that creates a `Fusion` from a number of channels.

    Raises:
        CrosscoopError: The operator does not exist, or does not accept the arguments.
    """
    if not isinstance(fusion, (str, dict)):
        return fusion
    chosen: dict[str, Any] = {"class_path": fusion} if isinstance(fusion, str) else fusion
    if "class_path" not in chosen or set(chosen) - {"class_path", "init_args"}:
        raise CrosscoopError(
            f"network.fusion: got the fields {chosen}, expected class_path and, optionally, init_args with the "
            "operator's arguments, such as {class_path: cross_stitch, init_args: {start: 0.2}}."
        )
    name, arguments = chosen["class_path"], chosen.get("init_args") or {}
    operator = find(name, FUSIONS, "network.fusion")
    if not (isinstance(operator, type) and issubclass(operator, Fusion)):
        raise CrosscoopError(f"network.fusion: {name!r} is {operator!r}, expected a subclass of crosscoop.Fusion.")
    try:
        signature(operator).bind(1, **arguments)
    except TypeError as error:
        raise CrosscoopError(
            f"network.fusion: got init_args {arguments} ({error}), expected arguments of {name}{signature(operator)}, "
            "whose first one must be channels, which is set automatically."
        ) from error
    parameters = signature(operator).parameters
    for key, value in arguments.items():  # YAML's 1 is meant as 1.0: a tensor filled with it would be one of integers
        if isinstance(value, int) and key in parameters and parameters[key].annotation in (float, "float"):
            arguments = {**arguments, key: float(value)}
    return partial(operator, **arguments) if arguments else operator

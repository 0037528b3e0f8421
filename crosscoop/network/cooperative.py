"""The cooperative network: branches in lock-step, with the exchange points between their steps (figures 2 and 4)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network.branch import DeepLabV3Plus
from crosscoop.network.exchange import Exchange, NoExchange
from crosscoop.network.fusion import Add, FusionFactory
from crosscoop.network.strategy import Strategy

T = TypeVar("T")


class CooperativeNetwork(nn.Module):
    """Branches that exchange feature maps (Ikedo and Hotta, VISAPP 2022).

    Args:
        branches: Top and bottom. One branch alone is the single-network baseline; any number may stand side by
            side without connections.
        strategy: Which exchange points are connected, and in which direction.
        fusion: Makes a fusion operator from a number of channels.

    Raises:
        CrosscoopError: The strategy connects top and bottom, but there are not two branches.
    """

    branches: Sequence[DeepLabV3Plus]
    aspp: Sequence[nn.Module]
    decoder: Sequence[nn.Module]

    def __init__(self, branches: Sequence[DeepLabV3Plus], strategy: Strategy, fusion: FusionFactory = Add) -> None:
        super().__init__()
        if strategy.points and len(branches) != 2:
            raise CrosscoopError(
                f"The strategy connects two branches (top, bottom) at {', '.join(strategy.points)}; got "
                f"{len(branches)}. Give two in network.branches, or set network.strategy to none."
            )

        def exchange(point: str, channels: list[int]) -> nn.Module:
            return Exchange(channels, strategy, fusion) if point in strategy.points else NoExchange()

        highs = [branch.aspp.in_channels for branch in branches]
        contexts = [branch.aspp.out_channels for branch in branches]
        details = [branch.decoder.projected_channels for branch in branches]
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]
        self.connection1 = exchange("connection1", highs)
        self.aspp = nn.ModuleList(exchange("aspp", contexts) for _ in branches[0].aspp.layers)  # type: ignore[assignment]
        self.connection2 = exchange("connection2", contexts)
        self.decoder = nn.ModuleList(  # type: ignore[assignment]
            exchange("decoder", channels) for channels in (details, contexts, contexts)
        )

    def forward(self, image: Tensor, upsample: bool = True) -> list[Tensor]:
        """Segment with every branch, step by step.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: False leaves the logits at the stride of `low`, which is enough for `upsampled_labels`.

        Returns:
            The logits of each branch, `(N, num_classes, H, W)`, or `H/4, W/4`. Their sum is the ensemble.
        """
        backbones = [branch.backbone for branch in self.branches]
        aspps = [branch.aspp for branch in self.branches]
        decoders = [branch.decoder for branch in self.branches]

        lows, highs = zip(*[backbone(image) for backbone in backbones], strict=True)
        highs = self.connection1(highs)
        layers = [exchange(each([aspp.layers[i] for aspp in aspps], highs)) for i, exchange in enumerate(self.aspp)]
        contexts = each([aspp.join for aspp in aspps], zip(*layers, strict=True))
        contexts = self.connection2(contexts)
        details = self.decoder[0](each([decoder.project for decoder in decoders], lows))
        features = self.decoder[1](each([decoder.join for decoder in decoders], details, contexts))
        features = self.decoder[2](each([decoder.second for decoder in decoders], features))
        size = (image if upsample else features[0]).shape[-2:]
        return [branch.classify(feature, size) for branch, feature in zip(self.branches, features, strict=True)]


def each(steps: Sequence[Callable[..., T]], *features: Iterable[Any]) -> list[T]:
    """Take the same step in every branch, with that branch's features."""
    return [step(*own) for step, *own in zip(steps, *features, strict=True)]

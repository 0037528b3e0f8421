"""The contract of a branch: a walk from the image to the logits that pauses at its exchange points."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from crosscoop.network.backbone import Backbone
from crosscoop.network.summed import SummedBackbones

Walk: TypeAlias = Generator[Tensor, Tensor, None]
"""Yields the map of each exchange point and takes back what came of it; the logits are its last yield."""


@dataclass(frozen=True)
class Point:
    """An exchange point of a branch.

    Attributes:
        name: Its name, unique in the branch (`aspp2`).
        group: What connection strategies call it together with its like (`aspp`).
        channels: Channels of the map there.
    """

    name: str
    group: str
    channels: int


class Branch(nn.Module, ABC):
    """One complete segmentation network, usable alone and unaware that it may cooperate.

    A branch of another shape is a subclass that tells its `walk` and declares the points at which it pauses, in their
    order. In YAML: `{backbone: NAME, class_path: my_file.MyBranch, init_args: {...}}`; its constructor takes the
    backbone and the number of classes first.

    Attributes:
        backbone: Turns the image into `low` and `high`; trains at the learning rate of backbones.
        points: The exchange points.
    """

    backbone: Backbone | SummedBackbones
    points: Sequence[Point]

    @abstractmethod
    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        """Segment step by step.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: False leaves the logits at the resolution at which they are computed.

        Yields:
            The map of each of `points`, `(N, channels, h, w)`, in exchange for what came of it; last of all the
            logits, `(N, num_classes, H, W)`.
        """

    def forward(self, image: Tensor, upsample: bool = True) -> Tensor:
        """Segment `(N, 3, H, W)` RGB in [0, 1] alone: every map comes back as it was."""
        walk = self.walk(image, upsample)
        feature = next(walk)
        for _ in self.points:
            feature = walk.send(feature)
        return feature

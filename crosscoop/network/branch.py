"""The interface of a branch: a walk from the image to the logits that pauses at its exchange points."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from crosscoop.network.backbone import Backbone, SummedBackbones

Walk: TypeAlias = Generator[Tensor, Tensor, None]
"""A generator that yields the map at each exchange point and receives its replacement; it yields the logits last."""


@dataclass(frozen=True)
class Point:
    """An exchange point of a branch.

    Attributes:
        name: Its name, unique in the branch (`aspp2`).
        group: The name by which connection strategies refer to it and similar points (`aspp`).
        channels: Channels of its map.
    """

    name: str
    group: str
    channels: int


class Branch(nn.Module, ABC):
    """A complete segmentation network, usable alone and independent of any cooperation.

    For another architecture, write a subclass that implements `walk` and declares the points at which it pauses, in
    order. In YAML: `{backbone: NAME, class_path: my_file.MyBranch, init_args: {...}}`; the first two arguments of its
    constructor are the backbone and the number of classes.

    Attributes:
        backbone: Computes `low` and `high` from the image; is trained with the learning rate of backbones.
        points: The exchange points.
    """

    backbone: Backbone | SummedBackbones
    points: Sequence[Point]

    @abstractmethod
    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        """Segment an image step by step.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: False keeps the logits at the resolution at which they are computed.

        Yields:
            The map at each of `points`, `(N, channels, h, w)`, whose replacement is sent back; and finally the
            logits, `(N, num_classes, H, W)`.
        """

    def forward(self, image: Tensor, upsample: bool = True) -> Tensor:
        """Segment `(N, 3, H, W)` RGB in [0, 1] without cooperation: every map is sent back unchanged."""
        walk = self.walk(image, upsample)
        feature = next(walk)
        for _ in self.points:
            feature = walk.send(feature)
        return feature

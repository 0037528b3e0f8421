"""The interface of a data set: named classes, their colours, and splits of samples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crosscoop.errors import CrosscoopError

VOID = 255
"""The mask value of pixels that losses and metrics ignore."""

Array = NDArray[np.uint8]
Color = tuple[int, int, int]

VOID_COLOR: Color = (224, 224, 192)
"""The cream in VOC's masks."""


@dataclass(frozen=True)
class Legend:
    """The colours that represent the classes in a data set's mask files.

    Attributes:
        class_names: One name per class, in index order.
        palette: One RGB colour per class, in index order.
        void: The colours that represent void; VOC's cream always does, unless it is the colour of a class.
        only: Whether masks are read by their colours only, whatever the values of the files are.
    """

    class_names: Sequence[str]
    palette: Sequence[Color]
    void: Sequence[Color] = ()
    only: bool = False

    @cached_property
    def indices(self) -> dict[Color, int]:
        """The class index, or `VOID`, of each colour; colours that several classes share are omitted."""
        palette = [(red, green, blue) for red, green, blue in self.palette]
        void = {VOID_COLOR, *((red, green, blue) for red, green, blue in self.void)} - set(palette)
        classes = {color: index for index, color in enumerate(palette) if palette.count(color) == 1}
        return dict.fromkeys(void, VOID) | classes

    def name(self, index: int) -> str:
        """Return the name of a class index, or of `VOID`."""
        return "void" if index == VOID else self.class_names[index]


class Sample(Protocol):
    """An image and its mask, read on demand.

    Attributes:
        name: Path-like name without suffix, unique in its split (`aachen/aachen_000000_000019`); predictions
            are written under it.
    """

    @property
    def name(self) -> str:
        """The sample's name."""
        ...

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB."""
        ...

    def mask(self) -> Array | None:
        """Return the mask: `(H, W)` uint8 class indices, `VOID` at unlabelled pixels; None for unlabelled samples."""
        ...


class SegmentationDataset(ABC):
    """A data set for semantic segmentation: classes, colours and splits. To define your own, write a subclass.

    Attributes:
        class_names: One name per class, in index order.
        palette: One RGB colour per class, in index order.
        legend: The colours of the classes in mask files; None if they are unknown, so that masks are read by their
            values.
        official_sizes: Number of images in each official split; other splits do not have an official size.
        train_split: Name of the split that `fit` trains on.
        val_split: Name of the split that `fit` and `validate` evaluate on.
        test_split: Name of the split that `test` and `predict` use by default.
    """

    class_names: Sequence[str]
    palette: Sequence[Color]
    legend: Legend | None = None
    official_sizes: Mapping[str, int] = {}
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"

    @property
    def num_classes(self) -> int:
        """The number of classes, not counting void."""
        return len(self.class_names)

    def prepare(self) -> None:  # noqa: B027  (most data sets have nothing to prepare)
        """Prepare the data on disk, for example by a download; called once per machine before a split is read."""

    @abstractmethod
    def samples(self, split: str) -> Sequence[Sample]:
        """Return the samples of a split, in the official order.

        Args:
            split: A split's name.

        Raises:
            CrosscoopError: The split is unknown, or its files are missing.
        """


def check_palette(dataset: SegmentationDataset) -> None:
    """Check that a data set has classes, and one colour for each.

    Args:
        dataset: The data set.

    Raises:
        CrosscoopError: There are no classes, or not as many colours as classes.
    """
    names, palette = getattr(dataset, "class_names", ()), getattr(dataset, "palette", ())
    if not names or len(palette) != len(names):
        raise CrosscoopError(
            f"data.dataset: got {len(names)} class_names and a palette of {len(palette)} colours from "
            f"{type(dataset).__name__}, expected one name and one RGB colour per class. Set "
            "both in the class or its constructor."
        )


def colormap(count: int) -> tuple[Color, ...]:
    """Return the first `count` colours of PASCAL VOC's colour map; index 0 is black.

    The bits of an index, three at a time from the lowest, are the bits of red, green and blue from the
    highest, so that neighbours differ strongly (`VOClabelcolormap.m` of the VOC development kit).

    Args:
        count: Number of colours, at most 256.
    """

    def channel(index: int, shift: int) -> int:
        return sum((index >> (3 * bit + shift) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))

"""What a data set is: named classes, their colours, and splits of samples that read themselves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

VOID = 255
"""The mask value of pixels that count nowhere: not in the loss, not in a metric."""

Array = NDArray[np.uint8]
Color = tuple[int, int, int]

VOID_COLOR: Color = (224, 224, 192)
"""VOC's cream."""


class Sample(Protocol):
    """One image and its mask, read when asked for.

    Attributes:
        name: Path-like name without suffix, unique in its split (`aachen/aachen_000000_000019`); predictions
            are written under it.
    """

    @property
    def name(self) -> str:
        """The sample's name."""
        ...

    def image(self) -> Array:
        """The image: `(H, W, 3)` uint8 RGB."""
        ...

    def mask(self) -> Array | None:
        """The mask: `(H, W)` uint8 class indices, `VOID` where there is no label; None for unlabelled samples."""
        ...


class SegmentationDataset(ABC):
    """A data set for semantic segmentation: classes, colours and splits. The contract for your own.

    Attributes:
        class_names: One name per class, in index order.
        palette: One RGB colour per class, in index order.
        official_sizes: Number of images that each official split must have; a split that is absent here has
            no official size.
        train_split: Name of the split that `fit` trains on.
        val_split: Name of the split that `fit` and `validate` evaluate on.
        test_split: Name of the split that `test` and `predict` use, unless told otherwise.
    """

    class_names: Sequence[str]
    palette: Sequence[Color]
    official_sizes: Mapping[str, int] = {}
    train_split: str
    val_split: str
    test_split: str

    @property
    def num_classes(self) -> int:
        """The number of classes, void not counted."""
        return len(self.class_names)

    def prepare(self) -> None:  # noqa: B027  (most data sets have nothing to prepare)
        """Bring the data to disk, by download for example; called once per machine before a split is read."""

    @abstractmethod
    def samples(self, split: str) -> Sequence[Sample]:
        """The samples of a split, in the official order.

        Args:
            split: A split's name.

        Raises:
            CrosscoopError: The split is unknown, or its files are missing.
        """

"""From samples to tensors: what a worker does."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crosscoop.data.augment import Augmentation, center_cropped, resized
from crosscoop.data.dataset import VOID, Array, Sample
from crosscoop.errors import CrosscoopError


class Item(TypedDict):
    """One sample as tensors; batches hold the same keys.

    Attributes:
        image: `(3, H, W)` uint8 RGB.
        mask: `(H, W)` uint8 class indices, `VOID` where there is no label.
        name: The sample's name.
    """

    image: Tensor
    mask: Tensor
    name: str


class TrainingSet(Dataset[Item]):
    """Augmented samples, drawn by (index, epoch).

    Args:
        samples: A split's samples; all must have masks.
        augmentation: Applied to each draw.
        resize: Height and width that samples are resized to beforehand; None leaves them.
        seed: With epoch and index it determines the augmentation.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        resize: Sequence[int] | None,
        seed: int,
    ) -> None:
        self.samples, self.augmentation, self.resize, self.seed = samples, augmentation, resize, seed

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, draw: tuple[int, int]) -> Item:
        """The augmented sample of a draw."""
        index, epoch = draw
        sample = self.samples[index]
        image, mask = read(sample, self.resize)
        if mask is None:
            raise CrosscoopError(f"{sample.name} has no mask, but is in the split to train on (data.dataset).")
        image, mask = self.augmentation(image, mask, (self.seed, epoch, index))
        return to_item(image, mask, sample.name)


class EvaluationSet(Dataset[Item]):
    """Samples as they are: whole, or their central square.

    Args:
        samples: A split's samples; without a mask, all pixels are void.
        resize: Height and width that samples are resized to beforehand; None leaves them.
        center_crop: Side of the central square; None for whole images.
    """

    def __init__(self, samples: Sequence[Sample], resize: Sequence[int] | None, center_crop: int | None) -> None:
        self.samples, self.resize, self.center_crop = samples, resize, center_crop

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        """A sample."""
        sample = self.samples[index]
        image, mask = read(sample, self.resize)
        if self.center_crop:
            image, mask = center_cropped(image, mask, self.center_crop)
        return to_item(image, np.full(image.shape[:2], VOID, np.uint8) if mask is None else mask, sample.name)


def read(sample: Sample, resize: Sequence[int] | None) -> tuple[Array, Array | None]:
    """Image and mask of a sample, of one size.

    Raises:
        CrosscoopError: They differ in size.
    """
    image, mask = sample.image(), sample.mask()
    if mask is not None and mask.shape != image.shape[:2]:
        raise CrosscoopError(
            f"{sample.name}: the mask has {mask.shape[0]} x {mask.shape[1]} pixels, the image {image.shape[0]} x "
            f"{image.shape[1]}; expected the same size. Mend or remove the pair."
        )
    return resized(image, mask, resize) if resize else (image, mask)


def to_item(image: Array, mask: Array, name: str) -> Item:
    """Tensors of their own memory from arrays."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "mask": torch.from_numpy(np.ascontiguousarray(mask)),
        "name": name,
    }

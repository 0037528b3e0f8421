"""Conversion of samples to tensors, in the worker processes."""

from collections.abc import Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crosscoop.data.augment import Augmentation, center_cropped, resized
from crosscoop.data.balance import ClassBalance
from crosscoop.data.check import exif_hint
from crosscoop.data.dataset import VOID, Array, Sample
from crosscoop.data.images import PngRows
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten


class Item(TypedDict):
    """A sample as tensors; batches have the same keys.

    Attributes:
        image: `(3, H, W)` uint8 RGB.
        mask: `(H, W)` uint8 class indices, `VOID` at unlabelled pixels; larger or smaller than the image if that was
            resized for evaluation.
        name: The sample's name.
        weak: The same crop before strong augmentation, from which teachers predict, `(3, H, W)` uint8 RGB.
        box: Top, bottom, left and right of the box that the sample receives from another one (CutMix), `(4,)`.
        skipped: Name and fault of each bad sample that this one replaces.
    """

    image: Tensor
    mask: Tensor
    name: str
    weak: NotRequired[Tensor]
    box: NotRequired[Tensor]
    skipped: NotRequired[list[tuple[str, str]]]


class TrainingSet(Dataset[Item]):
    """Augmented samples, indexed by (index, epoch).

    Args:
        samples: The samples.
        augmentation: Applied to each draw.
        resize: Height and width to which samples are resized first; None keeps their size.
        seed: Determines the augmentation, together with epoch and index.
        num_classes: The number of classes; mask values that are not class indices or `VOID` are rejected.
        skip_bad: Replace a sample that cannot be used by another one of its kind, drawn from the seed.
        labelled: Number of samples, from the first on, that must have masks; the masks of the others are void. None for
            all.
        balance: Chooses the labelled samples by their classes; None leaves them as drawn.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        resize: Sequence[int] | None,
        seed: int,
        num_classes: int = VOID,
        skip_bad: bool = False,
        labelled: int | None = None,
        balance: ClassBalance | None = None,
    ) -> None:
        self.balance = balance
        self.labelled = len(samples) if labelled is None else labelled
        self.samples, self.augmentation, self.resize, self.seed = samples, augmentation, resize, seed
        self.num_classes, self.skip_bad = num_classes, skip_bad

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, draw: tuple[int, int] | int) -> Item:
        """Return the augmented sample of a draw; a mere index, as from Lightning's `overfit_batches`, means epoch 0."""
        index, epoch = draw if isinstance(draw, tuple) else (draw, 0)
        seed, focus = (self.seed, epoch, index), None
        if self.balance and index < self.labelled:
            index, focus = self.balance.choose(seed)
        skipped: list[tuple[str, str]] = []
        for candidate in self._candidates(index, seed):
            try:
                item = self._draw(candidate, seed, focus)
                return {**item, "skipped": skipped} if skipped else item
            except (OSError, ValueError) as error:  # CrosscoopError is a ValueError
                if not self.skip_bad:
                    raise
                skipped.append((self.samples[candidate].name, str(error)))
        raise CrosscoopError(
            f"data.skip_bad_samples: all {len(skipped)} training samples are bad, expected at least one good one. The "
            f"first: {skipped[0][1]}"
        )

    def _candidates(self, index: int, seed: Sequence[int]) -> Iterator[int]:
        """Yield the index of a draw, then its possible replacements, the same on every worker and rank."""
        yield index
        kind = range(self.labelled) if index < self.labelled else range(self.labelled, len(self.samples))
        others = np.random.default_rng(seed).permutation(kind)
        yield from (int(other) for other in others if other != index)

    def _draw(self, index: int, seed: Sequence[int], focus: int | None) -> Item:
        sample, labelled = self.samples[index], index < self.labelled
        image, mask = read(sample, self.resize, whole=not self.augmentation.crops)
        if mask is None and labelled:
            raise CrosscoopError(f"{sample.name} is in the training split, but does not have a mask (data.dataset).")
        if mask is None or not labelled:
            mask = np.full(image.shape[:2], VOID, np.uint8)
        weak, mask = self.augmentation(image, mask, seed, focus)
        check_values(sample, mask, self.num_classes)
        strong = weak if labelled else self.augmentation.strengthen(weak, seed)
        item = to_item(strong, mask, sample.name)
        if self.augmentation.strong:
            item["weak"] = to_tensor(weak)
        if self.augmentation.cutmix:
            mixes = not labelled or self.labelled == len(self.samples)
            item["box"] = torch.tensor(self.augmentation.box(seed) if mixes else [0, 0, 0, 0])
        return item


class EvaluationSet(Dataset[Item]):
    """Samples without augmentation, complete or reduced to their central square.

    Args:
        samples: A split's samples; if a mask is missing, all pixels are void.
        resize: Height and width to which images are resized first; None keeps their size.
        center_crop: Side of the central square; None for complete images.
        num_classes: The number of classes; mask values that are not class indices or `VOID` are rejected.
        resize_masks: Whether masks are resized as well, instead of keeping their own size.

    Raises:
        CrosscoopError: Images are resized and cropped, but not their masks.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        resize: Sequence[int] | None,
        center_crop: int | None,
        num_classes: int = VOID,
        resize_masks: bool = False,
    ) -> None:
        self.samples, self.resize, self.center_crop, self.num_classes = samples, resize, center_crop, num_classes
        self.resize_masks = resize_masks
        if resize and center_crop and not resize_masks:
            raise CrosscoopError(
                f"data.center_crop: got {center_crop} with data.resize {list(resize)}, expected only one of them, "
                "because the square is cut out of images and masks of one size. Leave one out, or set "
                "data.resize_masks to true."
            )

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        """Return a sample."""
        sample = self.samples[index]
        image, mask = read(sample, self.resize if self.resize_masks else None)
        if self.center_crop:
            image, mask = center_cropped(image, mask, self.center_crop)
        if mask is None:
            mask = np.full(image.shape[:2], VOID, np.uint8)
        if self.resize and not self.resize_masks:
            image, _ = resized(image, None, self.resize)
        check_values(sample, mask, self.num_classes)
        return to_item(image, mask, sample.name)


def read(sample: Sample, resize: Sequence[int] | None, whole: bool = True) -> tuple[Any, Any]:
    """Return image and mask of a sample, in the same size.

    Args:
        sample: The sample.
        resize: Height and width to which it is resized; None keeps its size.
        whole: Whether both are needed completely; otherwise, they may be `PngRows`.

    Raises:
        CrosscoopError: They cannot be read, or do not match.
    """
    kind = "" if whole or resize else "_rows"
    image, mask = (getattr(sample, name + kind, getattr(sample, name))() for name in ("image", "mask"))
    check_pair(sample, image, mask)
    return resized(image, mask, resize) if resize else (image, mask)


def check_pair(sample: Sample, image: Array | PngRows, mask: Array | PngRows | None) -> None:
    """Reject an image and a mask that do not have the form that `Sample` specifies.

    Args:
        sample: Their sample.
        image: Its image.
        mask: Its mask.

    Raises:
        CrosscoopError: The image is not `(H, W, 3)` uint8, or the mask not `(H, W)` uint8 of the same size.
    """
    name, expected = sample.name, {"image": "(H, W, 3) uint8", "mask": "(H, W) uint8"}
    for what, array, dimensions in (("image", image, 3), ("mask", mask, 2)):
        if array is None or isinstance(array, PngRows):
            continue
        fits = array.ndim == dimensions and array.dtype == np.uint8 and array.size and array.shape[2:] in ((), (3,))
        if not fits:
            raise CrosscoopError(
                f"{name}: got a{'n' * (what == 'image')} {what} of shape {array.shape} and type {array.dtype}, "
                f"expected {expected[what]}. Convert it in the data set."
            )
    if mask is not None and mask.shape != image.shape[:2]:
        files = [str(path) for key in ("image_path", "mask_path") if (path := getattr(sample, key, None))]
        raise CrosscoopError(
            f"{name}: the mask has {mask.shape[0]} x {mask.shape[1]} pixels, the image {image.shape[0]} x "
            f"{image.shape[1]}; expected the same size. Fix or remove the pair{': ' * bool(files)}{', '.join(files)}."
            + exif_hint(sample)
        )


def check_values(sample: Sample, mask: Array, num_classes: int) -> None:
    """Reject a mask with a value that is not a class; masks from files have already been checked.

    Args:
        sample: Its sample.
        mask: `(H, W)` uint8, complete or a crop.
        num_classes: The number of classes.

    Raises:
        CrosscoopError: A value is neither a class index nor `VOID`.
    """
    wrong = (mask >= num_classes) & (mask != VOID)
    if wrong.any():
        raise CrosscoopError(
            f"{sample.name}: got the mask values {shorten(np.unique(mask[wrong]), 8)}, expected only indices of the "
            f"{num_classes} classes or void ({VOID}). Correct the mask or the classes."
        )


def to_item(image: Array, mask: Array, name: str) -> Item:
    """Convert arrays to tensors with their own memory."""
    return {
        "image": to_tensor(image),
        "mask": torch.from_numpy(np.array(mask, order="C")),
        "name": name,
    }


def to_tensor(image: Array) -> Tensor:
    """Convert `(H, W, 3)` to a tensor `(3, H, W)` with its own memory."""
    import cv2  # slow to import

    tensor = torch.empty(3, *image.shape[:2], dtype=torch.uint8)
    cv2.split(np.ascontiguousarray(image), list(tensor.numpy()))  # many times as fast as NumPy
    return tensor

"""Augmentation: random values are drawn first, so that only the required part of a sample is read and resized."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoop.data.dataset import VOID, Array
from crosscoop.data.images import PngRows
from crosscoop.data.transforms import Transforms, albumentations


class Augmentation:
    """Random scaling, cropping, flipping and colour jitter; masks are padded with void and keep whole labels.

    The crop is a window of whole pixels in the sample: at scale 0.75, 684 pixels are resized to 513. Compared with
    resizing the complete sample before cropping, this shifts the crop by less than a pixel.

    Args:
        crop_size: Side of the square crop, in pixels.
        scale: Smallest and largest factor of the random scale; equal values give a fixed scale.
        flip: Mirror each image with probability 0.5.
        photometric: Jitter brightness, contrast, saturation and hue.
        strong: Whether `strengthen` distorts colours.
        cutmix: Probability with which `box` draws a box.
        transforms: Applied to the crops; or, if they take whole images, instead of scaling, cropping and flipping.

    Attributes:
        crops: Whether only a window of each sample is used, because transforms do not take whole images.
    """

    def __init__(
        self,
        crop_size: int,
        scale: Sequence[float],
        flip: bool,
        photometric: bool,
        strong: bool = False,
        cutmix: float = 0.0,
        transforms: Transforms | None = None,
    ) -> None:
        self.crop_size, self.scale, self.flip = crop_size, scale, flip
        self.strong, self.cutmix, self.transforms = strong, cutmix, transforms
        self.crops = not (transforms and transforms.whole)
        self.jitter = color_jitter() if photometric else None
        self.distortion = strong_distortion() if strong else None

    def __call__(
        self, image: Array | PngRows, mask: Array | PngRows, seed: Sequence[int], focus: int | None = None
    ) -> tuple[Array, Array]:
        """Augment one sample.

        Args:
            image: `(H, W, 3)`; may be memory-mapped or, if `crops`, not decoded yet.
            mask: `(H, W)`, likewise.
            seed: Integers that alone determine the draw, independently of worker and rank.
            focus: A class of which the crop contains a random pixel, if the mask does; None for any crop.

        Returns:
            Image and mask in the crop's size.
        """
        random = np.random.default_rng(seed)
        crop, labels = self._crop(image, mask, random, focus) if self.crops else (np.asarray(image), np.asarray(mask))
        if self.jitter is not None:
            self.jitter.set_random_seed(int(random.integers(2**32)))
            crop = self.jitter(image=np.ascontiguousarray(crop))["image"]
        return self.transforms(crop, labels, seed) if self.transforms else (crop, labels)

    def _crop(
        self, image: Array | PngRows, mask: Array | PngRows, random: np.random.Generator, focus: int | None
    ) -> tuple[Array, Array]:
        """Scale, crop and flip a sample."""
        import cv2  # slow to import, and not needed for the command line's help

        size = self.crop_size
        side = max(round(size / random.uniform(self.scale[0], self.scale[1])), 1)
        pixel: Sequence[int | None] = (None, None)
        if focus is not None:
            mask = np.asarray(mask)
            if len(found := np.flatnonzero(mask == focus)):
                pixel = divmod(int(random.choice(found)), mask.shape[1])
        spans = [_window(length, side, size, random, place) for length, place in zip(mask.shape, pixel, strict=True)]
        source, target = (tuple(slices) for slices in zip(*spans, strict=True))
        crop, labels = np.zeros((size, size, 3), np.uint8), np.full((size, size), VOID, np.uint8)
        for whole, part, interpolation in (
            (image, crop[target], cv2.INTER_LINEAR),
            (mask, labels[target], cv2.INTER_NEAREST_EXACT),
        ):
            cv2.resize(whole[source], part.shape[1::-1], dst=part, interpolation=interpolation)
        if self.flip and random.random() < 0.5:
            crop, labels = cv2.flip(crop, 1), cv2.flip(labels, 1)  # not views, which later steps would read slowly
        return crop, labels

    def strengthen(self, crop: Array, seed: Sequence[int]) -> Array:
        """Distort the colours of an augmented crop, if `strong` is set.

        Args:
            crop: `(H, W, 3)`.
            seed: The integers that determined the crop.
        """
        if self.distortion is None:
            return crop
        self.distortion.set_random_seed(int(np.random.default_rng((*seed, 1)).integers(2**32)))
        distorted: Array = self.distortion(image=np.ascontiguousarray(crop))["image"]
        return distorted

    def box(self, seed: Sequence[int]) -> list[int]:
        """Draw a box in the crop, as top, bottom, left and right; all are 0 if there is none.

        Its share of the crop is 2 % to 40 %, its aspect ratio 0.3 to 3.3 (UniMatch, https://arxiv.org/abs/2208.09910).

        Args:
            seed: The integers that determined the crop.
        """
        random, size = np.random.default_rng((*seed, 2)), self.crop_size
        if random.random() >= self.cutmix:
            return [0, 0, 0, 0]
        area, ratio = random.uniform(0.02, 0.4), np.exp(random.uniform(np.log(0.3), -np.log(0.3)))
        sides = [min(max(round(size * side), 1), size) for side in (np.sqrt(area * ratio), np.sqrt(area / ratio))]
        top, left = (int(random.integers(size - side + 1)) for side in sides)
        return [top, top + sides[0], left, left + sides[1]]


def _window(length: int, side: int, size: int, random: np.random.Generator, pixel: int | None) -> tuple[slice, slice]:
    """Return where a window of `side` pixels lies in `length`, and its place in the crop: centred if it is smaller.

    It contains `pixel`, unless that is None.
    """
    inside = min(side, length)
    first, last = 0, length - inside
    if pixel is not None:
        first, last = max(pixel - inside + 1, first), min(pixel, last)
    start = int(random.integers(first, last + 1))
    scaled = max(round(inside * size / side), 1)
    margin = (size - scaled) // 2
    return slice(start, start + inside), slice(margin, margin + scaled)


def color_jitter() -> Any:
    """Return albumentations' colour jitter, one of two uses of this library because it is no longer maintained."""
    A = albumentations()  # noqa: N806
    return A.Compose([A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)])


def strong_distortion() -> Any:
    """Return the strong colour distortion of UniMatch (https://arxiv.org/abs/2208.09910): jitter, grey, blur."""
    A = albumentations()  # noqa: N806
    return A.Compose(
        [
            A.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def cutmix(batch: Tensor, box: Tensor) -> Tensor:
    """Return a batch in which each sample receives its box of the sample before it.

    CutMix of segmentation (French et al., BMVC 2020, https://arxiv.org/abs/1906.01916).

    Args:
        batch: Images, masks or logits, `(N, ..., H, W)`.
        box: Top, bottom, left and right of each sample's box, `(N, 4)`.
    """
    rows, columns = (torch.arange(length, device=batch.device) for length in batch.shape[-2:])
    top, bottom, left, right = box.T[:, :, None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    inside = inside.view(len(batch), *[1] * (batch.ndim - 3), *batch.shape[-2:])
    return torch.where(inside, batch.roll(1, 0), batch)


def resized(image: Array, mask: Array | None, size: Sequence[int]) -> tuple[Array, Array | None]:
    """Resize image (bilinear) and mask (nearest) to `size`, height and width in pixels."""
    import cv2

    height, width = size
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask


def center_cropped(image: Array, mask: Array | None, size: int) -> tuple[Array, Array | None]:
    """Return the central square of side `size`; smaller images are padded with black, their masks with void."""
    height, width = image.shape[:2]
    pad_y, pad_x = max(size - height, 0), max(size - width, 0)
    padding = ((pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2))
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    window = np.s_[top : top + size, left : left + size]
    image = np.pad(image, (*padding, (0, 0)))[window]
    return image, None if mask is None else np.pad(mask, padding, constant_values=VOID)[window]

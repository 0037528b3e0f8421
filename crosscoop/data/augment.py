"""Augmentation: random values are drawn first, so that only the required part of a sample is read and resized."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from crosscoop.data.dataset import VOID, Array


class Augmentation:
    """Random scaling, cropping, flipping and colour jitter; masks are padded with void and keep whole labels.

    The crop is a window of whole pixels in the sample: at scale 0.75, 684 pixels are resized to 513. Compared with
    resizing the complete sample before cropping, this shifts the crop by less than a pixel.

    Args:
        crop_size: Side of the square crop, in pixels.
        scale: Smallest and largest factor of the random scale; equal values give a fixed scale.
        flip: Mirror each image with probability 0.5.
        photometric: Jitter brightness, contrast, saturation and hue.
    """

    def __init__(self, crop_size: int, scale: Sequence[float], flip: bool, photometric: bool) -> None:
        self.crop_size, self.scale, self.flip = crop_size, scale, flip
        self.jitter = color_jitter() if photometric else None

    def __call__(self, image: Array, mask: Array, seed: Sequence[int]) -> tuple[Array, Array]:
        """Augment one sample.

        Args:
            image: `(H, W, 3)`; may be memory-mapped.
            mask: `(H, W)`.
            seed: Integers that alone determine the draw, independently of worker and rank.

        Returns:
            Image and mask in the crop's size.
        """
        import cv2  # slow to import, and not needed for the command line's help

        random, size = np.random.default_rng(seed), self.crop_size
        side = max(round(size / random.uniform(self.scale[0], self.scale[1])), 1)
        spans = [_window(length, side, size, random) for length in mask.shape]
        source, target = (tuple(slices) for slices in zip(*spans, strict=True))
        crop, labels = np.zeros((size, size, 3), np.uint8), np.full((size, size), VOID, np.uint8)
        for whole, part, interpolation in (
            (image, crop[target], cv2.INTER_LINEAR),
            (mask, labels[target], cv2.INTER_NEAREST_EXACT),
        ):
            part[...] = cv2.resize(whole[source], part.shape[1::-1], interpolation=interpolation)
        if self.flip and random.random() < 0.5:
            crop, labels = crop[:, ::-1], labels[:, ::-1]
        if self.jitter is not None:
            self.jitter.set_random_seed(int(random.integers(2**32)))
            crop = self.jitter(image=np.ascontiguousarray(crop))["image"]
        return crop, labels


def _window(length: int, side: int, size: int, random: np.random.Generator) -> tuple[slice, slice]:
    """Return where a window of `side` pixels lies in `length`, and its place in the crop: centred if it is smaller."""
    inside = min(side, length)
    start = int(random.integers(length - inside + 1))
    scaled = max(round(inside * size / side), 1)
    margin = (size - scaled) // 2
    return slice(start, start + inside), slice(margin, margin + scaled)


def color_jitter() -> Any:
    """Return albumentations' colour jitter, the only use of this library because it is no longer maintained."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it checks for a newer version online
    import albumentations as A  # noqa: N812  (slow to import)

    return A.Compose([A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)])


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

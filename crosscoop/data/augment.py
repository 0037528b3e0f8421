"""Augmentation. The only module that knows albumentations, which is no longer maintained."""

import os
from collections.abc import Sequence

import numpy as np

from crosscoop.data.dataset import VOID, Array

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version otherwise


class Augmentation:
    """Random scale, crop, flip and colour; masks are padded with void and resized to the nearest label.

    Args:
        crop_size: Side of the square crop, in pixels.
        scale: Smallest and largest factor of the random scale; equal ones scale by just that factor.
        flip: Mirror every second image.
        photometric: Jitter brightness, contrast, saturation and hue.
    """

    def __init__(self, crop_size: int, scale: Sequence[float], flip: bool, photometric: bool) -> None:
        import albumentations as A  # noqa: N812  (slow to import: the command line's help needs none)
        import cv2

        low, high = scale
        steps = [
            A.RandomScale(
                (low - 1, high - 1),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                p=1,
            ),
            A.PadIfNeeded(crop_size, crop_size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=VOID, p=1),
            A.RandomCrop(crop_size, crop_size, p=1),
        ]
        if flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if photometric:
            steps.append(A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8))
        self.compose = A.Compose(steps)

    def __call__(self, image: Array, mask: Array, seed: Sequence[int]) -> tuple[Array, Array]:
        """Augment one sample.

        Args:
            image: `(H, W, 3)`.
            mask: `(H, W)`.
            seed: Whole numbers that determine the draw, and nothing else does: not the worker, not the rank.

        Returns:
            Image and mask of the crop's size.
        """
        self.compose.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        augmented = self.compose(image=image, mask=mask)
        return augmented["image"], augmented["mask"]


def resized(image: Array, mask: Array | None, size: Sequence[int]) -> tuple[Array, Array | None]:
    """Resize image (bilinear) and mask (nearest) to `size`, height and width in pixels."""
    import cv2

    height, width = size
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask


def center_cropped(image: Array, mask: Array | None, size: int) -> tuple[Array, Array | None]:
    """The central square of side `size`; smaller images are padded with black, their masks with void."""
    height, width = image.shape[:2]
    pad_y, pad_x = max(size - height, 0), max(size - width, 0)
    padding = ((pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2))
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    window = np.s_[top : top + size, left : left + size]
    image = np.pad(image, (*padding, (0, 0)))[window]
    return image, None if mask is None else np.pad(mask, padding, constant_values=VOID)[window]

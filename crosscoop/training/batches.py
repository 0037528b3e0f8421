"""Batches as the network receives them, whichever loader they come from."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from crosscoop.data.dataset import VOID
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten


class Batch(TypedDict):
    """A batch as the network receives it.

    Attributes:
        image: `(N, 3, H, W)` RGB in [0, 1].
        mask: `(N, H, W)` class indices, 255 where there is no label.
        name: The samples' names.
        weak: The images as the branches that teach see them, if they differ from `image`.
        box: Top, bottom, left and right of the box that each image has received from the one before it, `(N, 4)`.
    """

    image: Tensor
    mask: Tensor
    name: list[str]
    weak: NotRequired[Tensor]
    box: NotRequired[Tensor]


def to_batch(given: Any, num_classes: int) -> Batch:
    """Return a batch of plain pairs, as of a user's own loader, as the network receives it.

    Args:
        given: `(image, mask)`, or a mapping with these keys. Images are `(N, 3, H, W)`: uint8, or floats in [0, 1];
            masks are `(N, H, W)` or `(N, 1, H, W)` integers.
        num_classes: The number of classes.

    Raises:
        CrosscoopError: The batch has another form, or a mask contains values that are neither a class nor `VOID`.
    """
    remedy = "Return (image, mask) from the data set, with images as uint8 or floats in [0, 1]."
    pair = [given.get("image"), given.get("mask")] if isinstance(given, Mapping) else given
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        kind = f"{len(given)} entries" if isinstance(given, (list, tuple)) else type(given).__name__
        raise CrosscoopError(f"got a batch of {kind}, expected a pair of tensors: images and masks. {remedy}")
    image, mask = pair
    mask = mask.squeeze(1) if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if image.ndim != 4 or image.shape[1] != 3 or mask.shape != (len(image), *image.shape[2:]):
        raise CrosscoopError(
            f"got images of shape {tuple(image.shape)} and masks of shape {tuple(mask.shape)}, expected (N, 3, H, W) "
            f"and (N, H, W). {remedy}"
        )
    if mask.is_floating_point():
        raise CrosscoopError(f"got masks of type {mask.dtype}, expected integers: class indices, or {VOID} for void.")
    mask = mask.long()
    wrong = ((mask < 0) | (mask >= num_classes)) & (mask != VOID)
    if wrong.any():
        raise CrosscoopError(
            f"got the mask values {shorten(mask[wrong].unique().tolist(), 8)}, expected indices of the {num_classes} "
            f"classes, or {VOID} for void. Map them in the data set, or correct the classes."
        )
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point() or image.min() < -0.5 or image.max() > 1.5:  # some filters overshoot
        low, high = image.min().item(), image.max().item()
        raise CrosscoopError(
            f"got images of type {image.dtype} from {low:g} to {high:g}, expected uint8, or floats in [0, 1]. Leave "
            "out the normalisation: each branch does its own."
        )
    return {"image": image, "mask": mask, "name": [str(i) for i in range(len(image))]}

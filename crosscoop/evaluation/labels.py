"""Labels from logits at a coarser stride, computed without storing the logits at full resolution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crosscoop.network.layers import resize


def upsampled_labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class with the highest logit at each pixel, after bilinear resizing of the logits.

    The result equals `resize(logits.float(), size).argmax(1)`, except where two classes are equal up to rounding:
    OpenCV and torch round differently. On the CPU, one class at a time is resized and compared with the highest so far;
    at 1024 x 2048 with 19 classes, this takes a tenth of the time, and 20 MB instead of 160.

    Args:
        logits: `(N, num_classes, h, w)`, at most 256 classes.
        size: Height and width of the labels.

    Returns:
        `(N, height, width)` uint8.
    """
    height, width = size
    if logits.device.type != "cpu":
        return resize(logits.float(), (height, width)).argmax(1).byte()
    return torch.stack([_labels(image, height, width) for image in logits.float()])


def _labels(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the labels `(height, width)` of the logits `(num_classes, h, w)` of one image."""
    import cv2  # slow to import, and not needed for the command line's help
    import numpy as np

    highest = np.full((height, width), -np.inf, np.float32)
    higher = np.empty((height, width), bool)
    labels = np.zeros((height, width), np.uint8)
    for index, coarse in enumerate(logits.detach().numpy()):
        current = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        np.greater(current, highest, out=higher)
        np.maximum(labels, higher * np.uint8(index), out=labels)  # the later class has the higher index
        np.maximum(highest, current, out=highest)
    return torch.from_numpy(labels)

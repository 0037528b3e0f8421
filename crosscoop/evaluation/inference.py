"""Inference on whole images, windows, scales and mirror images, and the labels that follow from the logits."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from crosscoop.errors import CrosscoopError
from crosscoop.network.layers import resize

Outputs = dict[str, Tensor]
"""Logits `(N, num_classes, H, W)` by output name; H and W are the image's, or smaller."""


class Inference:
    """The inference protocol of `validate`, `test` and `predict`: by default one pass over each image as it is.

    Overlapping windows average their logits. Scales and mirror images average their probabilities, separately for each
    output. A single scale of 1 without mirror images is equivalent to the plain network.

    Args:
        window: Height and width of the sliding window in pixels; null for one pass over each image.
        overlap: Share of a window's side that overlaps with the next window, from 0 to below 1.
        scales: Factors by which each image is resized.
        flip: Evaluate the mirror image as well.
    """

    def __init__(
        self,
        window: tuple[int, int] | None = None,
        overlap: float = 0.5,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        if window is not None and min(window) < 1:
            raise CrosscoopError(f"inference.window: got {list(window)}, expected [height, width] of at least 1.")
        if not 0 <= overlap < 1:
            raise CrosscoopError(f"inference.overlap: got {overlap}, expected a share from 0 to below 1.")
        if not scales or min(scales) <= 0:
            raise CrosscoopError(
                f"inference.scales: got {list(scales)}, expected factors above 0, such as [0.75, 1.0]."
            )
        self.window, self.overlap, self.scales, self.flip = window, overlap, list(scales), flip

    def describe(self) -> str:
        """Describe the protocol in one line, to be shown beside every metric."""
        window = (
            f"sliding window {self.window[0]} x {self.window[1]}, overlap {self.overlap:g}, " if self.window else ""
        )
        scales = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{window}{'single scale' if self.scales == [1.0] else scales}, {'with' if self.flip else 'no'} flip"

    def __call__(self, network: Callable[[Tensor], Outputs], image: Tensor) -> Outputs:
        """Compute the logits of images.

        Args:
            network: Maps images to the logits of each output, in the images' size or a coarser one.
            image: `(N, 3, H, W)` RGB in [0, 1].

        Returns:
            Logits of each output, whose softmax is the mean probability over scales and mirror images. They have the
            image's size, except for a single view of the whole image, where they are the network's own.
        """
        views = [(scale, mirror) for scale in self.scales for mirror in ([False, True] if self.flip else [False])]
        if views == [(1.0, False)]:
            return self._windows(network, image)
        mean: Outputs = {}
        for scale, mirror in views:
            for name, logits in self._view(network, image, scale, mirror).items():
                share = logits.float().softmax(1).div_(len(views))
                mean[name] = mean[name].add_(share) if name in mean else share
        return {name: share.log_() for name, share in mean.items()}

    def _view(self, network: Callable[[Tensor], Outputs], image: Tensor, scale: float, mirror: bool) -> Outputs:
        """Return logits at the image's size, computed from a scaled and possibly mirrored view."""
        height, width = image.shape[-2:]
        view = resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
        outputs = self._windows(network, view.flip(-1) if mirror else view)
        for name in outputs:  # one at a time, because each is large at full resolution
            logits = resize(outputs[name].float(), view.shape[-2:])
            outputs[name] = resize(logits.flip(-1) if mirror else logits, (height, width))
        return outputs

    def _windows(self, network: Callable[[Tensor], Outputs], image: Tensor) -> Outputs:
        """Return logits from windows that cover every pixel, or from the whole image."""
        height, width = image.shape[-2:]
        if self.window is None or (self.window[0] >= height and self.window[1] >= width):
            return network(image)
        total: Outputs = {}
        count = torch.zeros(height, width, device=image.device)
        for rows in self._spans(height, self.window[0]):
            for columns in self._spans(width, self.window[1]):
                count[rows, columns] += 1
                view = image[..., rows, columns]
                for name, coarse in network(view).items():
                    logits = resize(coarse.float(), view.shape[-2:])
                    if name not in total:
                        total[name] = logits.new_zeros((*logits.shape[:2], height, width))
                    total[name][..., rows, columns] += logits
        return {name: logits.div_(count) for name, logits in total.items()}

    def _spans(self, length: int, window: int) -> Iterator[slice]:
        """Yield evenly spaced windows over a side; the last one ends where the side ends."""
        window = min(window, length)
        steps = math.ceil((length - window) / max(window * (1 - self.overlap), 1))
        for step in range(steps + 1):
            start = round(step * (length - window) / max(steps, 1))
            yield slice(start, start + window)


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

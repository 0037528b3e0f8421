"""Boundary IoU (Cheng et al., CVPR 2021, https://arxiv.org/abs/2103.16562): the IoU of the regions near outlines."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from crosscoop.data.dataset import VOID, Array
from crosscoop.evaluation.metrics import SegmentationMetric

NEAR = 0.005
"""Distance from an outline that counts as near, as a share of the image's diagonal: 11 pixels at 1024 x 2048."""


def near_outlines(mask: Tensor) -> Tensor:
    """Return whether each pixel is near an outline of the mask.

    Args:
        mask: `(N, H, W)` class indices.
    """
    distance = max(1, round(NEAR * math.hypot(*mask.shape[-2:])))
    classes = torch.stack([mask, -mask.int()], 1).float()
    for kernel in ((2 * distance + 1, 1), (1, 2 * distance + 1)):
        classes = max_pool2d(classes, kernel, 1, (kernel[0] // 2, kernel[1] // 2))
    highest, lowest = classes[:, 0], -classes[:, 1]
    return highest != lowest


class BoundaryIoU(SegmentationMetric):
    """IoU per class of the pixels near the true and the predicted outlines; takes longer than all other metrics.

    Args:
        num_classes: The number of classes; pixels with other true values are ignored.
        width: Maximum distance from the outline, as a share of the image's diagonal; 0.02 in the paper.
    """

    counts: Tensor

    def __init__(self, num_classes: int, width: float = 0.02) -> None:
        super().__init__(num_classes)
        self.width = width
        self.add_state("counts", torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count the pixels of intersection, `counts[0]`, and union, `counts[1]`, by class."""
        for predicted, true in zip(labels.cpu().numpy(), mask.cpu().numpy(), strict=True):
            self.counts += torch.from_numpy(self._count(predicted, true)).to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Return `boundary_miou`, the mean over the present classes, and `boundary_iou` per class."""
        intersection, union = self.counts.cpu().double()
        ious = intersection / union
        return {"boundary_miou": ious.nanmean(), "boundary_iou": ious}

    def _count(self, labels: Array, mask: Array) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
        counts = np.zeros((2, self.num_classes), np.int64)
        labelled = (mask >= 0) & (mask < self.num_classes)
        labels = np.where(labelled, labels, VOID)  # void has outlines as well: the same for both
        distance = max(1, round(self.width * float(np.hypot(*mask.shape))))
        kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
        present = np.union1d(mask[labelled], labels[labelled])
        for index in present[(present >= 0) & (present < self.num_classes)]:  # files may contain other values
            near = []
            for region in (mask == index, labels == index):
                inner = cv2.erode(region.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
                near.append(region & (inner == 0))
            counts[:, index] = (near[0] & near[1]).sum(), (near[0] | near[1]).sum()
        return counts

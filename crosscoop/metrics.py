"""Figures of semantic segmentation, all from one confusion matrix over a whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """Counts pixels by true class (row) and predicted class (column), as 64-bit whole numbers.

    torchmetrics' own `MulticlassConfusionMatrix` gives the same counts; under `deterministic=True` it allocates pixels x
    classes squared, about 6 GiB for one Cityscapes image, which `bincount` does not.

    Args:
        num_classes: The number of classes; true values from there on (void) count nowhere.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state(
            "counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count.

        Args:
            labels: `(N, H, W)` predicted class indices.
            mask: `(N, H, W)` true class indices.
        """
        labelled = (mask >= 0) & (mask < self.num_classes)
        pairs = mask[labelled] * self.num_classes + labels[labelled]
        self.counts += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.counts)

    def compute(self) -> Tensor:
        """The counts `(num_classes, num_classes)`, summed over ranks."""
        return self.counts


@dataclass(frozen=True)
class Scores:
    """The figures of one output on one split.

    Attributes:
        counts: Confusion matrix `(num_classes, num_classes)`, rows true, columns predicted, on the CPU.
        class_names: One name per class.
    """

    counts: Tensor
    class_names: Sequence[str]

    @property
    def iou(self) -> Tensor:
        """IoU per class in [0, 1], float64; nan for classes that neither the masks nor the predictions hold."""
        true, predicted = self.counts.sum(1), self.counts.sum(0)
        hit = self.counts.diagonal()
        return hit.double() / (true + predicted - hit).double()

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are present."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return float(self.counts.diagonal().sum().double() / self.counts.sum().double())

    @property
    def absent(self) -> list[str]:
        """Classes left out of the mean because neither masks nor predictions hold them."""
        return [name for name, iou in zip(self.class_names, self.iou, strict=True) if iou.isnan()]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values; None where there is none."""
        ious = [None if iou != iou else iou for iou in self.iou.tolist()]
        accuracy = self.pixel_accuracy
        return {
            "miou": None if self.miou != self.miou else self.miou,
            "pixel_accuracy": None if accuracy != accuracy else accuracy,
            "iou_per_class": dict(zip(self.class_names, ious, strict=True)),
            "absent_classes": self.absent,
        }

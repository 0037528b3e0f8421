"""Figures of semantic segmentation, all from one confusion matrix over a whole data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """Counts pixels by true class (row) and predicted class (column), as 64-bit whole numbers.

    torchmetrics' own `MulticlassConfusionMatrix` gives the same counts; under `deterministic=True` it allocates pixels
    x classes squared, about 6 GiB for one Cityscapes image, which `bincount` does not.

    Args:
        num_classes: The number of classes; other true values (void) count nowhere. Other predicted values, which a
            network never gives but a file may, count as wrong, in one last column.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count.

        Args:
            labels: `(N, H, W)` predicted class indices.
            mask: `(N, H, W)` true class indices.
        """
        self.counts += count_pairs(labels, mask, self.num_classes)

    def compute(self) -> Tensor:
        """The counts `(num_classes, num_classes + 1)`, summed over ranks."""
        return self.counts


class BranchComparison(Metric):
    """Counts how the branches and their ensemble differ, pixel by pixel: the paper's very subject.

    Args:
        num_classes: The number of classes; true values from there on count nowhere.
    """

    full_state_update = False
    right: Tensor
    disagreeing: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("right", torch.zeros(num_classes, 2, 2, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("disagreeing", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Tensor], mask: Tensor) -> None:
        """Count.

        Args:
            outputs: Labels `(N, H, W)` of `top`, `bottom` and `ensemble`.
            mask: `(N, H, W)` true class indices.
        """
        case = rows_of(mask, self.num_classes)
        for name in ("top", "bottom", "ensemble"):
            case = case * 2 + (outputs[name] == mask)
        case = case * 2 + (outputs["top"] != outputs["bottom"])
        counts = torch.bincount(case.flatten(), minlength=(self.num_classes + 2) * 16)
        labelled = counts.view(self.num_classes + 2, 2, 2, 2, 2)[1:-1]
        self.right += labelled.sum(-1)
        self.disagreeing += labelled[..., 1].sum((1, 2, 3))

    def compute(self) -> tuple[Tensor, Tensor]:
        """The counts, summed over ranks.

        Returns:
            Pixels `(num_classes, 2, 2, 2)` by true class and whether top, bottom, ensemble are right; and pixels
            `(num_classes,)` on which top and bottom disagree.
        """
        return self.right, self.disagreeing


def rows_of(mask: Tensor, num_classes: int) -> Tensor:
    """1 to `num_classes` for the classes, 0 and `num_classes + 1` for what is none (faster than picking pixels)."""
    return mask.clamp(min=-1 if mask.dtype.is_signed else 0, max=num_classes).int() + 1  # clamped before it can wrap


def count_pairs(labels: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Pixels `(num_classes, num_classes + 1)` by true and predicted class, see `ConfusionMatrix`."""
    columns = labels.clamp(max=num_classes)
    if columns.dtype.is_signed:
        columns = columns.where(columns >= 0, num_classes)
    pairs = rows_of(mask, num_classes) * (num_classes + 1) + columns
    counts = torch.bincount(pairs.flatten(), minlength=(num_classes + 2) * (num_classes + 1))
    return counts.view(num_classes + 2, num_classes + 1)[1:-1]


@dataclass(frozen=True)
class Scores:
    """The figures of one output on one split.

    Attributes:
        counts: Confusion matrix `(num_classes, num_classes + 1)` on the CPU, see `ConfusionMatrix`.
        class_names: One name per class.
        boundary: Intersection and union `(2, num_classes)` near the outlines, see `BoundaryIoU`, if they were counted.
    """

    counts: Tensor
    class_names: Sequence[str]
    boundary: Tensor | None = None

    @property
    def hits(self) -> Tensor:
        """Right pixels per class."""
        return self.counts.diagonal()

    @property
    def true(self) -> Tensor:
        """Labelled pixels per class."""
        return self.counts.sum(1)

    @property
    def iou(self) -> Tensor:
        """IoU per class in [0, 1], float64; nan for classes that neither the masks nor the predictions hold."""
        predicted = self.counts.sum(0)[:-1]
        return self.hits.double() / (self.true + predicted - self.hits).double()

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are present."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return float(self.hits.sum().double() / self.true.sum().double())

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over the labelled classes of the share of their pixels that are right."""
        return float((self.hits.double() / self.true.double()).nanmean())

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, each class weighted by its labelled pixels."""
        return float((self.iou.nan_to_num() * self.true.double()).sum() / self.true.sum().double())

    @property
    def absent(self) -> list[str]:
        """Classes left out of the mean because neither masks nor predictions hold them."""
        return [name for name, iou in zip(self.class_names, self.iou, strict=True) if iou.isnan()]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values; None where there is none."""
        figures = {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }
        return {
            **{name: number(figure) for name, figure in figures.items()},
            "iou_per_class": dict(zip(self.class_names, map(number, self.iou.tolist()), strict=True)),
            "absent_classes": self.absent,
            **self._boundary_figures(),
        }

    def _boundary_figures(self) -> dict[str, Any]:
        if self.boundary is None:
            return {}
        intersection, union = self.boundary.double()
        ious = intersection / union
        per_class = dict(zip(self.class_names, map(number, ious.tolist()), strict=True))
        return {"boundary_miou": number(float(ious.nanmean())), "boundary_iou_per_class": per_class}


def number(figure: float) -> float | None:
    """A figure, or None for nan, which JSON has not."""
    return None if figure != figure else figure

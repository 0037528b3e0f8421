"""The metrics that follow from a confusion matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SECONDARY = ("mean_class_accuracy", "frequency_weighted_iou")
"""Metrics over all classes that only records and tables contain."""

PER_CLASS = "_per_class"
"""The end of the keys of metrics per class in records."""


def rows_of(mask: Tensor, num_classes: int) -> Tensor:
    """Map classes to 1 to `num_classes`, other values to 0 and `num_classes + 1` (faster than selecting pixels)."""
    return mask.clamp(min=-1 if mask.dtype.is_signed else 0, max=num_classes).int() + 1  # clamp before it can overflow


def count_pairs(labels: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count pixels `(num_classes, num_classes + 1)` by true and predicted class, see `ConfusionMatrix`."""
    columns = labels.clamp(max=num_classes)
    if columns.dtype.is_signed:
        columns = columns.where(columns >= 0, num_classes)
    pairs = rows_of(mask, num_classes) * (num_classes + 1) + columns
    counts = torch.bincount(pairs.flatten(), minlength=(num_classes + 2) * (num_classes + 1))
    return counts.view(num_classes + 2, num_classes + 1)[1:-1]


@dataclass(frozen=True)
class Scores:
    """The metrics of one output on one split.

    Attributes:
        counts: Confusion matrix `(num_classes, num_classes + 1)` on the CPU, see `ConfusionMatrix`.
        class_names: One name per class.
        further: Values of further metrics on the CPU, see `SegmentationMetric`.
    """

    counts: Tensor
    class_names: Sequence[str]
    further: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def hits(self) -> Tensor:
        """Correctly labelled pixels per class."""
        return self.counts.diagonal()

    @property
    def true(self) -> Tensor:
        """Pixels per true class."""
        return self.counts.sum(1)

    @property
    def iou(self) -> Tensor:
        """IoU per class in [0, 1], float64; nan for classes that occur neither in the masks nor in the predictions."""
        predicted = self.counts.sum(0)[:-1]
        return self.hits.double() / (self.true + predicted - self.hits).double()

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are present."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted correctly."""
        return float(self.hits.sum().double() / self.true.sum().double())

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over the classes in the masks of the share of their pixels that are predicted correctly."""
        return float((self.hits.double() / self.true.double()).nanmean())

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, with each class weighted by its number of pixels in the masks."""
        return float((self.iou.nan_to_num() * self.true.double()).sum() / self.true.sum().double())

    @property
    def absent(self) -> list[str]:
        """Classes left out of the mean because they occur neither in the masks nor in the predictions."""
        return [name for name, iou in zip(self.class_names, self.iou, strict=True) if iou.isnan()]

    @property
    def figures(self) -> dict[str, float | None]:
        """Each metric over all classes by name; None if it is undefined."""
        figures = {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            **{name: float(figure) for name, figure in self.further.items() if figure.ndim == 0},
        }
        return {name: number(figure) for name, figure in figures.items()}

    @property
    def headline(self) -> dict[str, float | None]:
        """The `figures` that the loggers and the history record."""
        return {name: figure for name, figure in self.figures.items() if name not in SECONDARY}

    @property
    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Each metric per class by name and class; None if it is undefined."""
        figures = {"iou": self.iou, **{name: figure for name, figure in self.further.items() if figure.ndim}}
        return {
            name: dict(zip(self.class_names, map(number, figure.tolist()), strict=True))
            for name, figure in figures.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as plain values; the keys of those per class end in `_per_class`."""
        per_class = {f"{name}{PER_CLASS}": figures for name, figures in self.per_class.items()}
        return {**self.figures, **per_class, "absent_classes": self.absent}


def number(figure: float) -> float | None:
    """Return a value, or None for nan, which JSON cannot represent."""
    return None if figure != figure else figure


def evaluate(labels: Mapping[str, Tensor], mask: Tensor, class_names: Sequence[str]) -> dict[str, Scores]:
    """Return the metrics of a single batch, independently of other ranks.

    Args:
        labels: Predicted class indices `(N, H, W)` by output.
        mask: True class indices `(N, H, W)`.
        class_names: One name per class.
    """
    number = len(class_names)
    return {
        output: Scores(count_pairs(predicted, mask, number).cpu(), class_names) for output, predicted in labels.items()
    }

"""Metrics of semantic segmentation over a whole split: the confusion matrix, and the interface of further metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crosscoop.network.outputs import ENSEMBLE

SECONDARY = ("mean_class_accuracy", "frequency_weighted_iou")
"""Metrics over all classes that only records and tables contain."""

PER_CLASS = "_per_class"
"""The end of the keys of metrics per class in records."""


class ConfusionMatrix(Metric):
    """Counts of pixels by true class (row) and predicted class (column), as 64-bit integers.

    torchmetrics' `MulticlassConfusionMatrix` gives the same counts, but with `deterministic=True` it allocates pixels x
    classes squared, about 6 GiB for one Cityscapes image; `bincount` does not.

    Args:
        num_classes: The number of classes; pixels with other true values (void) are ignored. Other predicted values,
            which files may contain but networks never predict, are counted as wrong in an additional last column.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            labels: `(N, H, W)` predicted class indices.
            mask: `(N, H, W)` true class indices.
        """
        self.counts += count_pairs(labels, mask, self.num_classes)

    def compute(self) -> Tensor:
        """Return the counts `(num_classes, num_classes + 1)`, summed over ranks."""
        return self.counts


class SegmentationMetric(Metric, ABC):
    """The interface of a further metric: one instance measures one output over a split.

    To define your own metric, write a subclass whose constructor takes `num_classes` first; further arguments come from
    `init_args` in YAML. Keep the counts in torchmetrics' states (`self.add_state(name, zeros, dist_reduce_fx="sum")`),
    so that the metric is exact over any number of ranks.

    Args:
        num_classes: The number of classes.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            labels: `(N, H, W)` predicted class indices; label files may contain other values, which are always wrong.
            mask: `(N, H, W)` true class indices; other values, such as 255, are void: ignore these pixels.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return the metric's values by name; names are in lower case with underscores.

        Each value is a scalar, or has one entry per class `(num_classes,)`: a share from -1 to 1, where higher is
        better, and nan if there is nothing to measure. Tables show it in %.
        """


MetricFactory = Callable[[int], SegmentationMetric]
"""Creates a metric for a number of classes."""


class BranchComparison(Metric):
    """Counts of how the branches and their ensemble differ, pixel by pixel: the question the paper studies.

    Args:
        num_classes: The number of classes; pixels with other true values are ignored.
        branches: The names of two or more branches. The size of the counts grows linearly with their number.
    """

    full_state_update = False
    right: Tensor
    disagreeing: Tensor

    def __init__(self, num_classes: int, branches: Sequence[str]) -> None:
        super().__init__()
        self.num_classes, self.branches = num_classes, list(branches)
        self.cases = len(branches) + 2
        zeros = torch.zeros(num_classes, self.cases, 2, dtype=torch.int64)
        self.add_state("right", zeros, dist_reduce_fx="sum")
        self.add_state("disagreeing", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Tensor], mask: Tensor) -> None:
        """Count a batch.

        Args:
            outputs: Labels `(N, H, W)` of the branches and of `ensemble`.
            mask: `(N, H, W)` true class indices.
        """
        first, *others = (outputs[name] for name in self.branches)
        number = (first == mask).byte()  # of branches that are right
        alone, differ = number.clone(), torch.zeros_like(number)
        for place, labels in enumerate(others, 2):
            right = (labels == mask).byte()
            number += right
            alone.add_(right, alpha=place)
            differ |= labels != first
        case = rows_of(mask, self.num_classes).mul_(self.cases).add_(alone.where(number < 2, self.cases - 1))
        case.mul_(2).add_(outputs[ENSEMBLE] == mask).mul_(2).add_(differ)
        counts = torch.bincount(case.flatten(), minlength=(self.num_classes + 2) * self.cases * 4)
        labelled = counts.view(self.num_classes + 2, self.cases, 2, 2)[1:-1]
        self.right += labelled.sum(-1)
        self.disagreeing += labelled[..., 1].sum((1, 2))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the counts, summed over ranks.

        Returns:
            Pixels `(num_classes, branches + 2, 2)` by true class, by the only branch that is right (index 0: none,
            then each branch, last index: several), and by whether the ensemble is right; and pixels `(num_classes,)`
            on which the branches do not all predict the same class.
        """
        return self.right, self.disagreeing


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

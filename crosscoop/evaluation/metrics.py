"""Metrics of semantic segmentation over a whole split: the confusion matrix, and the contract of further ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crosscoop.network.outputs import ENSEMBLE

SECONDARY = ("mean_class_accuracy", "frequency_weighted_iou")
"""Figures over all classes that stand in records and tables only."""

PER_CLASS = "_per_class"
"""How the keys of figures of the single classes end in records."""


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


class SegmentationMetric(Metric, ABC):
    """The contract of a metric beside the confusion matrix: one instance measures one output over a split.

    A metric of your own is a subclass whose constructor takes `num_classes` first; further arguments come from
    `init_args` in YAML. It keeps what it counts in torchmetrics' states (`self.add_state(name, zeros,
    dist_reduce_fx="sum")`), so that it is exact over any number of ranks.

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
            labels: `(N, H, W)` predicted class indices; in files other values may occur, which are always wrong.
            mask: `(N, H, W)` true class indices; other values, such as 255, are void and count nowhere.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return the figures by name, in lower case with underscores.

        Each is one number, or one per class `(num_classes,)`: a share from -1 to 1, the higher the better, nan where
        there is nothing to measure. Tables show it in %.
        """


MetricFactory = Callable[[int], SegmentationMetric]
"""Makes a metric from the number of classes."""


class BranchComparison(Metric):
    """Counts how the branches and their ensemble differ, pixel by pixel: the question the paper studies.

    Args:
        num_classes: The number of classes; true values from there on count nowhere.
        branches: The names of two or more branches. The counts grow with their number, not with its power of two.
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
        number = (first == mask).byte()  # of the branches that are right
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
            Pixels `(num_classes, branches + 2, 2)` by true class, by the branch that alone is right (first none, then
            each branch, last several), and by whether the ensemble is right; and pixels `(num_classes,)` to which the
            branches do not all give the same class.
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
        further: What further metrics give, on the CPU, see `SegmentationMetric`.
    """

    counts: Tensor
    class_names: Sequence[str]
    further: Mapping[str, Tensor] = field(default_factory=dict)

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

    @property
    def figures(self) -> dict[str, float | None]:
        """Each figure over all classes by name; None where there is none."""
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
        """Those `figures` that loggers and the history follow."""
        return {name: figure for name, figure in self.figures.items() if name not in SECONDARY}

    @property
    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Each figure of the single classes by name, and by class; None where there is none."""
        figures = {"iou": self.iou, **{name: figure for name, figure in self.further.items() if figure.ndim}}
        return {
            name: dict(zip(self.class_names, map(number, figure.tolist()), strict=True))
            for name, figure in figures.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values; those of the classes end in `_per_class`."""
        per_class = {f"{name}{PER_CLASS}": figures for name, figures in self.per_class.items()}
        return {**self.figures, **per_class, "absent_classes": self.absent}


def number(figure: float) -> float | None:
    """Return a figure, or None for nan, which JSON cannot represent."""
    return None if figure != figure else figure

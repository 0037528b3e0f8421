"""Metrics of semantic segmentation over a whole split: the confusion matrix, and the interface of further metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from crosscoop.evaluation.scores import count_pairs, rows_of
from crosscoop.network.outputs import ENSEMBLE


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

"""What counts over a whole split and all ranks: the confusion matrix, the interface of further metrics, branches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from crosscoop.evaluation.scores import count_pairs, rows_of
from crosscoop.network.outputs import ENSEMBLE


class Metric(nn.Module):
    """States that are summed over batches, processes and ranks, as in torchmetrics' class of this name.

    torchmetrics takes twice as long to import as torch. The states are not buffers, which DDP would overwrite by those
    of the first rank, and weight averaging would average.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, Tensor] = {}

    def add_state(self, name: str, default: Tensor, dist_reduce_fx: Literal["sum"] = "sum") -> None:
        """Add a state, an attribute of this name.

        Args:
            name: Its name.
            default: Its value before the first batch: zeros.
            dist_reduce_fx: How those of several ranks are combined; only sum is exact over any number of ranks.
        """
        self.states[name] = default
        setattr(self, name, default.clone())

    def reset(self) -> None:
        """Reset all states."""
        for name, default in self.states.items():
            setattr(self, name, default.clone().to(getattr(self, name).device))

    def merge_state(self, other: "Metric") -> None:
        """Add what another instance has counted."""
        for name in self.states:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @contextmanager
    def over_ranks(self) -> Iterator[None]:
        """Sum the states over all ranks within the block; every rank must enter it."""
        own = {name: getattr(self, name) for name in self.states}
        if distributed.is_available() and distributed.is_initialized():
            for name, state in own.items():
                setattr(self, name, state.clone())
                distributed.all_reduce(getattr(self, name))
        yield
        for name, state in own.items():
            setattr(self, name, state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Metric":
        """Move the states to another device with the module, but keep their type: counts are exact."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.states:
            state = getattr(self, name)
            setattr(self, name, state.to(fn(state).device))
        return self


class Total(Metric):
    """A sum of numbers."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()))

    def update(self, number: float | Tensor) -> None:
        """Add a number."""
        self.total += number

    def compute(self) -> float:
        """Return the sum over all ranks."""
        with self.over_ranks():
            return float(self.total)


class ConfusionMatrix(Metric):
    """Counts of pixels by true class (row) and predicted class (column), as 64-bit integers.

    torchmetrics' `MulticlassConfusionMatrix` gives the same counts, but with `deterministic=True` it allocates pixels x
    classes squared, about 6 GiB for one Cityscapes image; `bincount` does not.

    Args:
        num_classes: The number of classes; pixels with other true values (void) are ignored. Other predicted values,
            which files may contain but networks never predict, are counted as wrong in an additional last column.
    """

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64))

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            labels: `(N, H, W)` predicted class indices.
            mask: `(N, H, W)` true class indices.
        """
        self.counts += count_pairs(labels, mask, self.num_classes)

    def compute(self) -> Tensor:
        """Return the counts `(num_classes, num_classes + 1)`."""
        return self.counts


class SegmentationMetric(Metric, ABC):
    """The interface of a further metric: one instance measures one output over a split.

    To define your own metric, write a subclass whose constructor takes `num_classes` first; further arguments come from
    `init_args` in YAML. Keep the counts in states (`self.add_state(name, zeros)`), attributes of these names: the
    metric is then exact over any number of ranks.

    Args:
        num_classes: The number of classes.
    """

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

    right: Tensor
    disagreeing: Tensor

    def __init__(self, num_classes: int, branches: Sequence[str]) -> None:
        super().__init__()
        self.num_classes, self.branches = num_classes, list(branches)
        self.cases = len(branches) + 2
        zeros = torch.zeros(num_classes, self.cases, 2, dtype=torch.int64)
        self.add_state("right", zeros)
        self.add_state("disagreeing", torch.zeros(num_classes, dtype=torch.int64))

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
        """Return the counts.

        Returns:
            Pixels `(num_classes, branches + 2, 2)` by true class, by the only branch that is right (index 0: none,
            then each branch, last index: several), and by whether the ensemble is right; and pixels `(num_classes,)`
            on which the branches do not all predict the same class.
        """
        return self.right, self.disagreeing

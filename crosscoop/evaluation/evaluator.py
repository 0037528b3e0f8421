"""The metrics of each output over a split, used by every command that evaluates."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.metrics import ConfusionMatrix, MetricFactory, SegmentationMetric
from crosscoop.evaluation.scores import Scores

RESERVED = ("stage", "num_images", "protocol", "outputs", "absent_classes", "iou_per_class", "predictions", "epoch")
"""Other keys beside the metrics in `metrics.json`."""


class Evaluator(nn.Module):
    """Metrics of the outputs of a network, or of any other source of labels.

    They always include the confusion matrix, and are exact over any number of ranks.

    Args:
        class_names: One name per class.
        outputs: The outputs' names.
        metrics: Further metrics.
    """

    def __init__(
        self, class_names: Sequence[str], outputs: Iterable[str], metrics: Sequence[MetricFactory] = ()
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        number = len(self.class_names)
        self.images = SumMetric()
        self.confusion = nn.ModuleDict({output: ConfusionMatrix(number) for output in outputs})
        self.further = nn.ModuleDict(
            {output: nn.ModuleList([make(number) for make in metrics]) for output in self.confusion}
        )

    def update(self, labels: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add a batch to the metrics.

        Args:
            labels: Predicted class indices `(N, H, W)` by output.
            mask: True class indices `(N, H, W)`.
        """
        self.images.update(len(mask))
        for output, predicted in labels.items():
            for metric in self._of(output):
                metric.update(predicted, mask)

    def merge(self, other: "Evaluator") -> None:
        """Add what another evaluator of the same outputs and metrics has measured."""
        for own, theirs in zip(self.every_metric(), other.every_metric(), strict=True):
            own.merge_state(theirs)

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in self.every_metric():
            metric.reset()

    def num_images(self) -> int:
        """Return the number of images over all ranks."""
        return int(self.images.compute())

    def compute(self) -> dict[str, Scores]:
        """Return each output's metrics over all ranks.

        Raises:
            CrosscoopError: A metric returns something other than `SegmentationMetric` specifies.
        """
        return {output: self._scores(output) for output in self.confusion}

    def _scores(self, output: str) -> Scores:
        confusion, *further = self._of(output)
        scores = Scores(confusion.compute().cpu(), self.class_names)
        figures: dict[str, Tensor] = {}
        for metric in further:
            taken = {*scores.figures, *scores.per_class, *figures, *RESERVED}
            figures |= checked(cast(SegmentationMetric, metric), metric.compute(), taken)
        return Scores(scores.counts, self.class_names, figures)

    def _of(self, output: str) -> list[Metric]:
        return [cast(Metric, self.confusion[output]), *cast(Iterable[Metric], self.further[output])]

    def every_metric(self) -> Iterator[Metric]:
        """Yield the metrics of all outputs, and the number of images."""
        yield self.images
        for output in self.confusion:
            yield from self._of(output)


def checked(metric: SegmentationMetric, figures: object, taken: Collection[str]) -> dict[str, Tensor]:
    """Return a metric's values as float64 on the CPU, after checking that tables can show them.

    Args:
        metric: The metric.
        figures: What it computed.
        taken: Names already in use.

    Raises:
        CrosscoopError: The values are not shares by name, or a name is already in use.
    """
    where, found = f"metrics: {type(metric).__name__}.compute()", dict[str, Tensor]()
    if not isinstance(figures, dict):
        raise CrosscoopError(f"{where}: got {type(figures).__name__}, expected a dict of metrics by name.")
    for name, figure in figures.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            raise CrosscoopError(f"{where}: got the name {name!r}, expected lower case with underscores, such as dice.")
        if name in taken:
            raise CrosscoopError(
                f"{where}: got {name!r}, a name already in use. Rename it, or remove one of the metrics."
            )
        what = f"shape {tuple(figure.shape)}" if isinstance(figure, Tensor) else type(figure).__name__
        if what not in ("shape ()", f"shape ({metric.num_classes},)"):
            raise CrosscoopError(
                f"{where}[{name!r}]: got {what}, expected a tensor of shape () or, with a value per class, "
                f"({metric.num_classes},)."
            )
        found[name] = figure.detach().cpu().double()
        if (wrong := found[name][found[name].abs() > 1 + 1e-6]).numel():
            raise CrosscoopError(
                f"{where}[{name!r}]: got {float(wrong[0]):g}, expected shares from -1 to 1, which tables show in %. "
                "Divide it by its maximum."
            )
    return found

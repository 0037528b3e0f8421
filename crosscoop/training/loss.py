"""The loss of one branch's logits; the network's loss is the sum over its branches (the paper's equation 1)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from crosscoop.data.dataset import VOID
from crosscoop.errors import CrosscoopError


class Loss(nn.Module, ABC):
    """The contract of a loss: one branch's logits and the mask give a scalar. Yours is a subclass, by class path."""

    @abstractmethod
    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss, finite also where no pixel is labelled.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.
        """


class CrossEntropy(Loss):
    """Cross entropy over the labelled pixels; 0, with zero gradients, where a batch has none.

    Args:
        class_weights: One weight per class; null weighs all the same.
        label_smoothing: Share of the probability that is spread over all classes.

    Raises:
        CrosscoopError: A weight is negative or no number, the share is not one, or there is not one weight per class.
    """

    weight: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not all(0 <= weight < float("inf") for weight in class_weights or []):
            raise CrosscoopError(f"loss.class_weights: got {class_weights}, expected numbers of 0 or more.")
        if not 0 <= label_smoothing <= 1:
            raise CrosscoopError(f"loss.label_smoothing: got {label_smoothing}, expected 0 to 1.")
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The mean over labelled pixels; in training, over those of all ranks (see `share`).

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.
        """
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise CrosscoopError(
                f"loss.class_weights: got {len(self.weight)} weights, expected one for each of the {logits.shape[1]} "
                "classes."
            )
        precision = torch.promote_types(logits.dtype, torch.float32)
        total = functional.cross_entropy(
            logits.to(precision),
            mask,
            self.weight,
            ignore_index=VOID,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        labelled = mask != VOID
        count = labelled.sum().to(precision) if self.weight is None else self.weight[mask[labelled]].sum()
        return total / (share(count) if self.training else count).clamp(min=1e-12)


def share(count: Tensor) -> Tensor:
    """The mean of a count over the ranks.

    A sum of losses divided by it has, averaged over the ranks as DDP does, the gradients of the joined batch; divided
    by each rank's own count it would weigh the pixels of a rank with much void more.

    Args:
        count: A scalar; every rank calls this.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()

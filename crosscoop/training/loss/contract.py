"""The contract of a branch's loss, and how it stays exact when a batch is spread over several ranks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError


class Loss(nn.Module, ABC):
    """Contract of a loss: one branch's logits and the mask in, a scalar out. Subclass it to define your own."""

    @abstractmethod
    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a scalar; finite, with zero gradients, if no pixel is labelled.

        Args:
            logits: `(N, num_classes, H, W)`, in half precision under autocast.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
        """


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a value over the ranks, with the gradient of this rank's own value.

    DDP averages the gradients of the ranks. A sum of losses divided by the mean count of pixels therefore has the
    gradients of the joined batch; divided by each rank's own count, it would give more weight to the pixels of a rank
    with much void. The same holds for any function of such means that does not change when all of them grow by one
    factor (Dice).

    Without gradients, as in validation, where ranks may hold different numbers of batches, it is the value itself.

    Args:
        value: A tensor of the same shape on every rank; every rank must call this.
    """
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() + (value - value.detach())


def in_single(logits: Tensor) -> Tensor:
    """Return logits in at least single precision, which sums over pixels require."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class WeightedSum(Loss):
    """Sum of several losses, such as cross entropy and Dice.

    Args:
        losses: The losses, each by class path.
        weights: One weight per loss; null weights all losses by 1.

    Raises:
        CrosscoopError: There is no loss, or not one weight of 0 or more per loss.
    """

    losses: Sequence[Loss]

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not losses:
            raise CrosscoopError("loss.losses: got an empty list, expected at least one loss.")
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        if len(self.weights) != len(losses) or not all(0 <= weight < float("inf") for weight in self.weights):
            raise CrosscoopError(
                f"loss.weights: got {self.weights}, expected one number of 0 or more for each of {len(losses)} losses."
            )
        self.losses = nn.ModuleList(losses)  # type: ignore[assignment]

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted sum.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.
        """
        pairs = zip(self.weights, self.losses, strict=True)
        return torch.stack([weight * loss(logits, mask) for weight, loss in pairs]).sum()

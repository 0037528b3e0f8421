"""The contract of a branch's loss, and how it stays exact when a batch is spread over several ranks."""

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn


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

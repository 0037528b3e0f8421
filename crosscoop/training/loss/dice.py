"""Dice loss (Milletari et al., 3DV 2016, https://arxiv.org/abs/1606.04797), for several classes."""

import torch
from torch import Tensor

from crosscoop.data.dataset import VOID
from crosscoop.training.loss.contract import Loss, in_single, mean_over_ranks


class Dice(Loss):
    """Dice loss: 1 minus the soft Dice coefficient, averaged over the classes that the masks contain.

    The coefficients are computed over the batches of all ranks together; only labelled pixels count.
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over the classes; 0 if no pixel is labelled.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.
        """
        probabilities = in_single(logits).softmax(1)
        truth = mask[:, None] == torch.arange(logits.shape[1], device=mask.device).view(-1, 1, 1)
        labelled = mask[:, None] != VOID
        shared, predicted, true = mean_over_ranks(
            torch.stack([(each * probabilities).sum((0, 2, 3)) for each in (truth, labelled)] + [truth.sum((0, 2, 3))])
        )
        present = true > 0
        dice = 2 * shared / (predicted + true).clamp(min=1e-12)
        loss: Tensor = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
        return loss

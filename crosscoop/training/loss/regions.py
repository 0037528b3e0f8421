"""Losses of the overlap of predicted and true regions: Dice and Lovasz."""

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


class Lovasz(Loss):
    """Lovasz-Softmax loss: a convex surrogate of 1 minus the mean IoU of an image, over the classes of its mask.

    It is the mean over the labelled images of all ranks.
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over the images; 0 if no pixel is labelled.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.
        """
        images = zip(in_single(logits).softmax(1), mask, strict=True)
        losses = torch.stack([lovasz_softmax(probabilities, truth) for probabilities, truth in images])
        labelled = (mask != VOID).flatten(1).any(1).sum().to(losses)
        return losses.sum() / mean_over_ranks(labelled).clamp(min=1e-12)


def lovasz_softmax(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the loss of one image; 0 if no pixel is labelled.

    Args:
        probabilities: `(num_classes, H, W)`.
        mask: `(H, W)`.
    """
    labelled = mask != VOID
    if not labelled.any():
        return 0 * probabilities.sum()
    classes = torch.unique(mask[labelled])
    truth = mask[labelled] == classes[:, None]
    errors, order = (truth.to(probabilities) - probabilities[classes][:, labelled]).abs().sort(1, descending=True)
    losses: Tensor = (errors * jaccard_steps(truth.gather(1, order))).sum(1)
    return losses.mean()


def jaccard_steps(truth: Tensor) -> Tensor:
    """Return how much each pixel adds to 1 - IoU when pixels become wrong one after the other.

    The closed form avoids differences of neighbouring IoUs, which lose most of their digits in a large image.

    Args:
        truth: `(classes, pixels)` bool: whether a pixel belongs to the class, in the order in which they become wrong.
    """
    missed = truth.cumsum(1)
    total = missed[:, -1:]
    union = total + (~truth).cumsum(1)
    return torch.where(truth, 1 / union, (total - missed) / (union * (union - 1)))

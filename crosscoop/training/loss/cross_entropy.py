"""Cross entropy."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from crosscoop.data.dataset import VOID
from crosscoop.errors import CrosscoopError
from crosscoop.training.loss.contract import Loss, in_single, mean_over_ranks


class CrossEntropy(Loss):
    """Cross entropy: the mean over the labelled pixels of all ranks.

    Args:
        class_weights: One weight per class; null weights all classes equally.
        label_smoothing: Share of the probability that is spread over all classes.
        hardest: Share of each image's labelled pixels that counts, those with the largest loss (online hard example
            mining); 1 counts all.

    Raises:
        CrosscoopError: A class weight is negative or not finite, or a share is out of range.
    """

    weight: Tensor | None

    def __init__(
        self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0, hardest: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise CrosscoopError(f"loss.label_smoothing: got {label_smoothing}, expected 0 to 1.")
        if not 0 < hardest <= 1:
            raise CrosscoopError(f"loss.hardest: got {hardest}, expected a share above 0 and at most 1.")
        self.register_buffer("weight", class_weights_tensor(class_weights), persistent=False)
        self.label_smoothing, self.hardest = label_smoothing, hardest

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over the labelled pixels; 0 if there are none.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.

        Raises:
            CrosscoopError: There is not one class weight per class.
        """
        logits = in_single(logits)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        weights = pixel_weights(weight, mask, logits.shape[1])
        losses = functional.cross_entropy(
            logits,
            mask,
            weight,
            ignore_index=VOID,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        if self.hardest < 1:
            chosen = hardest_pixels(losses.detach(), mask != VOID, self.hardest)
            losses, weights = losses * chosen, weights * chosen
        return losses.sum() / mean_over_ranks(weights.sum()).clamp(min=1e-12)


def hardest_pixels(losses: Tensor, labelled: Tensor, share: float) -> Tensor:
    """Return `(N, H, W)` bool: the hardest share of each image's labelled pixels, including ties.

    Per image rather than per batch, so that the result does not depend on how images are spread over ranks.

    Args:
        losses: `(N, H, W)`.
        labelled: `(N, H, W)` bool.
        share: Share of each image's labelled pixels.
    """
    ordered = losses.masked_fill(~labelled, float("-inf")).flatten(1).sort(1, descending=True).values
    count = (labelled.flatten(1).sum(1, keepdim=True) * share).ceil().long()
    limit = ordered.gather(1, (count - 1).clamp(min=0))
    return labelled & (losses >= limit[..., None])


def class_weights_tensor(class_weights: Sequence[float] | None) -> Tensor | None:
    """Return class weights as a tensor.

    Raises:
        CrosscoopError: One is negative or not finite.
    """
    if class_weights is None:
        return None
    if not all(0 <= weight < float("inf") for weight in class_weights):
        raise CrosscoopError(f"loss.class_weights: got {list(class_weights)}, expected numbers of 0 or more.")
    return torch.tensor(class_weights, dtype=torch.float32)


def pixel_weights(weight: Tensor | None, mask: Tensor, num_classes: int) -> Tensor:
    """Return the weight of each pixel's class `(N, H, W)`, 0 where there is no label.

    Args:
        weight: A weight per class; None weights all classes equally.
        mask: `(N, H, W)`.
        num_classes: Number of classes.

    Raises:
        CrosscoopError: There is not one weight per class.
    """
    labelled = mask != VOID
    if weight is None:
        return labelled.float()
    if len(weight) != num_classes:
        raise CrosscoopError(
            f"loss.class_weights: got {len(weight)} weights, expected one for each of the {num_classes} classes."
        )
    return weight[mask.where(labelled, 0)] * labelled

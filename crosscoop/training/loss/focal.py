"""Focal loss (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002), over the classes of a softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from crosscoop.data.dataset import VOID
from crosscoop.errors import CrosscoopError
from crosscoop.training.loss.contract import Loss, in_single, mean_over_ranks
from crosscoop.training.loss.cross_entropy import class_weights_tensor, pixel_weights


class Focal(Loss):
    """Focal loss: cross entropy times `(1 - p) ** gamma`, where `p` is the probability of the true class.

    It is the mean over the labelled pixels of all ranks; with a gamma of 0 it equals `CrossEntropy`.

    Args:
        gamma: How strongly well-classified pixels are down-weighted.
        class_weights: One weight per class; null weights all classes equally.

    Raises:
        CrosscoopError: Gamma or a class weight is negative or not finite.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise CrosscoopError(f"loss.gamma: got {gamma}, expected a number of 0 or more.")
        self.register_buffer("weight", class_weights_tensor(class_weights), persistent=False)
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over the labelled pixels; 0 if there are none.

        Args:
            logits: `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` where there is no label.

        Raises:
            CrosscoopError: There is not one class weight per class.
        """
        weights = pixel_weights(self.weight, mask, logits.shape[1])
        losses = functional.cross_entropy(in_single(logits), mask, ignore_index=VOID, reduction="none")
        missing = (-torch.expm1(-losses)).clamp(min=1e-12)  # below a gamma of 1 the slope at 0 is infinite
        return (weights * missing**self.gamma * losses).sum() / mean_over_ranks(weights.sum()).clamp(min=1e-12)

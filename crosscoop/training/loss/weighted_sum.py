"""Sums of losses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.training.loss.contract import Loss


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

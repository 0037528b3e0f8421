"""Objectives by which branches teach each other: with labels, and on images without any."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from crosscoop.errors import CrosscoopError
from crosscoop.training.objective.contract import Objective


class MutualLearning(Objective):
    """Deep mutual learning (Zhang et al., CVPR 2018, https://arxiv.org/abs/1706.00384).

    Besides its own loss, each branch minimises the Kullback-Leibler divergence of the others' probabilities from its
    own, averaged over the other branches and over all pixels, void and padding included.

    Args:
        weight: Factor on the divergence.
        temperature: Divides the logits before the softmax; the divergence is multiplied by its square.

    Raises:
        CrosscoopError: The weight is below 0, or the temperature is not above 0.
    """

    teachers = True

    def __init__(self, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight = _at_least_0("weight", weight)
        if not 0 < temperature < float("inf"):
            raise CrosscoopError(f"objective.temperature: got {temperature}, expected a number above 0.")
        self.temperature = temperature

    def forward(
        self, logits: Mapping[str, Tensor], mask: Tensor, teachers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return each branch's loss by its name, and what it learns from the others as `BRANCH_mutual`.

        Args:
            logits: Each branch's, by its name, `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
            teachers: The logits that the other branches learn from; by default `logits`, without gradients.
        """
        losses = {branch: self.loss(own, mask) for branch, own in logits.items()}
        for branch, own in logits.items():
            student = (own.float() / self.temperature).log_softmax(1)
            divergences = [
                kl_div(student, (each.float() / self.temperature).log_softmax(1), reduction="none", log_target=True)
                for each in others(branch, teachers or logits)
            ]
            divergence = torch.stack([each.sum(1).mean() for each in divergences]).mean()
            losses[f"{branch}_mutual"] = self.weight * self.temperature**2 * divergence
        return losses


class CrossPseudoSupervision(Objective):
    """Cross pseudo supervision (Chen et al., CVPR 2021, https://arxiv.org/abs/2106.01226), also of unlabelled images.

    Besides its own loss, each branch minimises the cross entropy with the classes that the others predict, averaged
    over the other branches and over all pixels, void and padding included.

    Args:
        weight: Factor on the cross entropy; the source has 1.5 on PASCAL VOC and 6 on Cityscapes.
        confidence: Probability from which a predicted class counts; 0 lets all count, as in the source.

    Raises:
        CrosscoopError: The weight is below 0, or the confidence is not from 0 to 1.
    """

    teachers = True

    def __init__(self, weight: float = 1.5, confidence: float = 0.0) -> None:
        super().__init__()
        self.weight = _at_least_0("weight", weight)
        if not 0 <= confidence <= 1:
            raise CrosscoopError(f"objective.confidence: got {confidence}, expected a probability from 0 to 1.")
        self.confidence = confidence

    def forward(
        self, logits: Mapping[str, Tensor], mask: Tensor, teachers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return each branch's loss by its name, and what it learns from the others as `BRANCH_pseudo`.

        Args:
            logits: Each branch's, by its name, `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
            teachers: The logits that the other branches learn from; by default `logits`, without gradients.
        """
        losses = {branch: self.loss(own, mask) for branch, own in logits.items()}
        for branch, own in logits.items():
            taught = [self._taught(own, each) for each in self.choose(branch, teachers or logits)]
            losses[f"{branch}_pseudo"] = self.weight * torch.stack(taught).mean()
        return losses

    def choose(self, branch: str, logits: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits of the branches that teach a branch, without gradients.

        Args:
            branch: The name of the branch that learns.
            logits: Each branch's, by its name.
        """
        return others(branch, logits)

    def _taught(self, own: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean over all pixels, of which unconfident ones count as 0."""
        if not self.confidence:
            return cross_entropy(own.float(), teacher.argmax(1))
        confidence, labels = teacher.float().softmax(1).max(1)
        return (cross_entropy(own.float(), labels, reduction="none") * (confidence >= self.confidence)).mean()


class SelfTraining(CrossPseudoSupervision):
    """Every branch learns from the classes that it predicts itself: the control to cross pseudo supervision.

    With `data.strong` and a confidence this is FixMatch (Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685):
    it predicts from the undistorted image and learns on the distorted one.

    Args:
        weight: Factor on the cross entropy.
        confidence: Probability from which a predicted class counts; 0 lets all count.

    Raises:
        CrosscoopError: The weight is below 0, or the confidence is not from 0 to 1.
    """

    def __init__(self, weight: float = 1.5, confidence: float = 0.0) -> None:
        super().__init__(weight, confidence)

    def choose(self, branch: str, logits: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the branch's own logits, without gradients.

        Args:
            branch: The name of the branch that learns.
            logits: Each branch's, by its name.
        """
        return [logits[branch].detach()]


def others(branch: str, logits: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the logits of all branches but one, without gradients.

    Args:
        branch: The name of that one.
        logits: Each branch's, by its name.

    Raises:
        CrosscoopError: There is no other.
    """
    found = [each.detach() for name, each in logits.items() if name != branch]
    if not found:
        raise CrosscoopError(
            "model.objective: got one branch, expected two or more that teach each other. List them in "
            "network.branches, or use the objective SelfTraining or Supervised."
        )
    return found


def _at_least_0(option: str, number: float) -> float:
    if not 0 <= number < float("inf"):
        raise CrosscoopError(f"objective.{option}: got {number}, expected 0 or more.")
    return number

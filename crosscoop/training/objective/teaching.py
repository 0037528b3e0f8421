"""Objectives by which branches teach each other: with labels, and on images without any."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from crosscoop.errors import CrosscoopError
from crosscoop.training.objective.contract import Objective

Teacher = Literal["others", "ensemble"]


class Teaching(Objective):
    """Each branch learns from the masks and from the predictions of the others, or of the ensemble of all.

    What it learns from the others is averaged over them and over all pixels, void and padding included.

    Args:
        weight: Factor on what the branches teach.
        warmup_steps: Training steps over which the factor rises linearly from 0, since branches that have not learnt
            anything yet teach errors.
        teacher: Who teaches a branch: every other one (others), or the mean of all logits, its own included (ensemble;
            Lan et al., NeurIPS 2018, https://arxiv.org/abs/1806.04606).

    Attributes:
        lesson_name: What is taught is logged as `BRANCH_LESSON`.

    Raises:
        CrosscoopError: A number is below 0, or the teacher is unknown.
    """

    teachers = True
    lesson_name: str
    step: Tensor

    def __init__(self, weight: float, warmup_steps: int, teacher: Teacher = "others") -> None:
        super().__init__()
        if teacher not in get_args(Teacher):
            raise CrosscoopError(f"objective.teacher: got {teacher!r}, expected one of {', '.join(get_args(Teacher))}.")
        for option, value in (("weight", weight), ("warmup_steps", warmup_steps)):
            if not 0 <= value < float("inf"):
                raise CrosscoopError(f"objective.{option}: got {value}, expected 0 or more.")
        self.weight, self.warmup_steps, self.teacher = weight, warmup_steps, teacher
        self.register_buffer("step", torch.tensor(0))

    def forward(
        self, logits: Mapping[str, Tensor], mask: Tensor, teachers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return each branch's loss by its name, and what it learns from the others.

        Args:
            logits: Each branch's, by its name, `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
            teachers: The logits that are learnt from, without gradients; by default `logits`.
        """
        losses = {branch: self.loss(own, mask) for branch, own in logits.items()}
        self.step += 1
        weight = self.weight * (self.step / self.warmup_steps).clamp(max=1) if self.warmup_steps else self.weight
        for branch, own in logits.items():
            lessons = [
                self.lesson(own.float(), each.detach().float()) for each in self.choose(branch, teachers or logits)
            ]
            losses[f"{branch}_{self.lesson_name}"] = weight * torch.stack(lessons).mean()
        return losses

    def choose(self, branch: str, teachers: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits that a branch learns from.

        Args:
            branch: Its name.
            teachers: Every branch's, by its name.

        Raises:
            CrosscoopError: There is no other.
        """
        others = [each for name, each in teachers.items() if name != branch]
        if not others:
            raise CrosscoopError(
                "model.objective: got one branch, expected two or more that teach each other. List them in "
                "network.branches, or use the objective SelfTraining or Supervised."
            )
        return others if self.teacher == "others" else [torch.stack(list(teachers.values())).mean(0)]

    @abstractmethod
    def lesson(self, own: Tensor, teacher: Tensor) -> Tensor:
        """Return what a branch minimises to learn from a teacher, a scalar.

        Args:
            own: The branch's logits, `(N, num_classes, H, W)`.
            teacher: The teacher's.
        """


class MutualLearning(Teaching):
    """Deep mutual learning (Zhang et al., CVPR 2018, https://arxiv.org/abs/1706.00384).

    Besides its own loss, each branch minimises the Kullback-Leibler divergence of the others' probabilities from its
    own, averaged over the other branches and over all pixels, void and padding included.

    Args:
        weight: Factor on the divergence.
        temperature: Divides the logits before the softmax; the divergence is multiplied by its square.
        warmup_steps: Training steps over which the factor rises linearly from 0.
        teacher: `others`, or `ensemble`: the mean of all branches' logits (Lan et al., NeurIPS 2018,
            https://arxiv.org/abs/1806.04606).

    Raises:
        CrosscoopError: The weight or the warm-up is below 0, the temperature is not above 0, or the teacher is unknown.
    """

    lesson_name = "mutual"

    def __init__(
        self, weight: float = 1.0, temperature: float = 1.0, warmup_steps: int = 0, teacher: Teacher = "others"
    ) -> None:
        super().__init__(weight, warmup_steps, teacher)
        if not 0 < temperature < float("inf"):
            raise CrosscoopError(f"objective.temperature: got {temperature}, expected a number above 0.")
        self.temperature = temperature

    def lesson(self, own: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence.

        Args:
            own: The branch's logits, `(N, num_classes, H, W)`.
            teacher: The teacher's.
        """
        student, target = ((each / self.temperature).log_softmax(1) for each in (own, teacher))
        divergence = kl_div(student, target, reduction="none", log_target=True).sum(1).mean()
        return self.temperature**2 * divergence


class CrossPseudoSupervision(Teaching):
    """Cross pseudo supervision (Chen et al., CVPR 2021, https://arxiv.org/abs/2106.01226), also of unlabelled images.

    Besides its own loss, each branch minimises the cross entropy with the classes that the others predict, averaged
    over the other branches and over all pixels, void and padding included.

    Args:
        weight: Factor on the cross entropy; the source has 1.5 on PASCAL VOC and 6 on Cityscapes.
        confidence: Probability from which a predicted class counts; 0 lets all count, as in the source.
        warmup_steps: Training steps over which the factor rises linearly from 0.
        teacher: `others`, or `ensemble`: the mean of all branches' logits.

    Raises:
        CrosscoopError: The weight or the warm-up is below 0, the confidence is not from 0 to 1, or the teacher is
            unknown.
    """

    lesson_name = "pseudo"

    def __init__(
        self, weight: float = 1.5, confidence: float = 0.0, warmup_steps: int = 0, teacher: Teacher = "others"
    ) -> None:
        super().__init__(weight, warmup_steps, teacher)
        if not 0 <= confidence <= 1:
            raise CrosscoopError(f"objective.confidence: got {confidence}, expected a probability from 0 to 1.")
        self.confidence = confidence

    def lesson(self, own: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean over all pixels, of which unconfident ones count as 0.

        Args:
            own: The branch's logits, `(N, num_classes, H, W)`.
            teacher: The teacher's.
        """
        if not self.confidence:
            return cross_entropy(own, teacher.argmax(1))
        confidence, labels = teacher.softmax(1).max(1)
        return (cross_entropy(own, labels, reduction="none") * (confidence >= self.confidence)).mean()


class SelfTraining(CrossPseudoSupervision):
    """Every branch learns from the classes that it predicts itself: the control to cross pseudo supervision.

    With `data.strong` and a confidence this is FixMatch (Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685):
    it predicts from the undistorted image and learns on the distorted one.

    Args:
        weight: Factor on the cross entropy.
        confidence: Probability from which a predicted class counts; 0 lets all count.
        warmup_steps: Training steps over which the factor rises linearly from 0.

    Raises:
        CrosscoopError: The weight or the warm-up is below 0, or the confidence is not from 0 to 1.
    """

    def __init__(self, weight: float = 1.5, confidence: float = 0.0, warmup_steps: int = 0) -> None:
        super().__init__(weight, confidence, warmup_steps)

    def choose(self, branch: str, teachers: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the branch's own logits.

        Args:
            branch: Its name.
            teachers: Every branch's, by its name.
        """
        return [teachers[branch]]

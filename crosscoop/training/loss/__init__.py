"""Losses of one branch's logits; the objective combines those of all branches."""

from crosscoop.training.loss.contract import Loss, mean_over_ranks
from crosscoop.training.loss.cross_entropy import CrossEntropy
from crosscoop.training.loss.dice import Dice
from crosscoop.training.loss.focal import Focal
from crosscoop.training.loss.lovasz import Lovasz
from crosscoop.training.loss.weighted_sum import WeightedSum

__all__ = ["CrossEntropy", "Dice", "Focal", "Loss", "Lovasz", "WeightedSum", "mean_over_ranks"]

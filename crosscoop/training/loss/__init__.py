"""Losses of one branch's logits; the objective combines those of all branches."""

from crosscoop.training.loss.contract import Loss, WeightedSum, mean_over_ranks
from crosscoop.training.loss.cross_entropy import CrossEntropy
from crosscoop.training.loss.focal import Focal
from crosscoop.training.loss.regions import Dice, Lovasz

__all__ = ["CrossEntropy", "Dice", "Focal", "Loss", "Lovasz", "WeightedSum", "mean_over_ranks"]

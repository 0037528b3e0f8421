"""Objectives: the logits of all branches and the mask in, named losses out."""

from crosscoop.training.objective.contract import Objective
from crosscoop.training.objective.supervised import Supervised
from crosscoop.training.objective.teaching import CrossPseudoSupervision, MutualLearning, SelfTraining

__all__ = ["CrossPseudoSupervision", "MutualLearning", "Objective", "SelfTraining", "Supervised"]

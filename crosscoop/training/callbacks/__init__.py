"""Callbacks: the run's folder, checkpoints, the network's summary, images, frozen batch norm."""

from crosscoop.training.callbacks.checkpoints import FurtherCheckpoints, LastCheckpoint, further_checkpoints
from crosscoop.training.callbacks.comparison import OutputComparison
from crosscoop.training.callbacks.freeze import FreezeBatchNorm
from crosscoop.training.callbacks.nonfinite import NonFinite
from crosscoop.training.callbacks.pictures import PredictionImages
from crosscoop.training.callbacks.progress import Progress
from crosscoop.training.callbacks.ranks import Ranks
from crosscoop.training.callbacks.run import RunFolder
from crosscoop.training.callbacks.skipped import SkippedSamples
from crosscoop.training.callbacks.summary import NetworkSummary

__all__ = [
    "FreezeBatchNorm",
    "FurtherCheckpoints",
    "LastCheckpoint",
    "NetworkSummary",
    "NonFinite",
    "OutputComparison",
    "PredictionImages",
    "Progress",
    "Ranks",
    "RunFolder",
    "SkippedSamples",
    "further_checkpoints",
]

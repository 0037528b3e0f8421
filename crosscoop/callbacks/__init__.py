"""What happens beside training: the run's folder, pictures, predictions, frozen batch norm."""

from crosscoop.callbacks.comparison import OutputComparison
from crosscoop.callbacks.freeze import FreezeBatchNorm
from crosscoop.callbacks.last import LastCheckpoint
from crosscoop.callbacks.nonfinite import NonFinite
from crosscoop.callbacks.pictures import PredictionImages
from crosscoop.callbacks.predictions import PredictionWriter
from crosscoop.callbacks.ranks import Ranks
from crosscoop.callbacks.run import RunFolder
from crosscoop.callbacks.skipped import SkippedSamples

__all__ = [
    "FreezeBatchNorm",
    "LastCheckpoint",
    "NonFinite",
    "OutputComparison",
    "PredictionImages",
    "PredictionWriter",
    "Ranks",
    "RunFolder",
    "SkippedSamples",
]

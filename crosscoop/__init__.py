"""Cross cooperative learning for semantic segmentation (Ikedo and Hotta, VISAPP 2022)."""

import importlib
from typing import TYPE_CHECKING

from crosscoop.version import __version__

if TYPE_CHECKING:
    from crosscoop.data import FileSample, Sample, SegmentationData, SegmentationDataset
    from crosscoop.evaluation.metrics import SegmentationMetric
    from crosscoop.network import (
        Branch,
        CooperativeNetwork,
        DeepLabV3Plus,
        Fusion,
        Point,
        Strategy,
        Walk,
        create_network,
        list_fusions,
        list_strategies,
    )
    from crosscoop.prediction.predictor import Prediction, Predictor, load
    from crosscoop.training.loss import Loss
    from crosscoop.training.objective import Objective
    from crosscoop.training.task import CooperativeSegmentation
else:

    def __getattr__(name: str) -> object:
        """Import a name on first use: most of them import torch, which would slow down `crosscoop --help`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"crosscoop.{ELSEWHERE.get(name, 'network')}"), name)


ELSEWHERE = {
    **dict.fromkeys(("FileSample", "Sample", "SegmentationData", "SegmentationDataset"), "data"),
    **dict.fromkeys(("Prediction", "Predictor", "load"), "prediction.predictor"),
    "CooperativeSegmentation": "training.task",
    "Loss": "training.loss",
    "Objective": "training.objective",
    "SegmentationMetric": "evaluation.metrics",
}
"""The modules of those public names that are not defined in `crosscoop.network`."""

__all__ = [
    "Branch",
    "CooperativeNetwork",
    "CooperativeSegmentation",
    "DeepLabV3Plus",
    "FileSample",
    "Fusion",
    "Loss",
    "Objective",
    "Point",
    "Prediction",
    "Predictor",
    "Sample",
    "SegmentationData",
    "SegmentationDataset",
    "SegmentationMetric",
    "Strategy",
    "Walk",
    "__version__",
    "create_network",
    "list_fusions",
    "list_strategies",
    "load",
]

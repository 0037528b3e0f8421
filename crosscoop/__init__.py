"""Cross cooperative learning for semantic segmentation (Ikedo and Hotta, VISAPP 2022)."""

import importlib
from typing import TYPE_CHECKING

from crosscoop.version import __version__

if TYPE_CHECKING:
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
else:

    def __getattr__(name: str) -> object:
        """What is below, only when asked for: it brings torch along, which `crosscoop --help` does without."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"crosscoop.{ELSEWHERE.get(name, 'network')}"), name)


ELSEWHERE = {
    **dict.fromkeys(("Prediction", "Predictor", "load"), "prediction.predictor"),
    "SegmentationMetric": "evaluation.metrics",
}
"""Modules of the names that do not come from `crosscoop.network`."""

__all__ = [
    "Branch",
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Point",
    "Prediction",
    "Predictor",
    "SegmentationMetric",
    "Strategy",
    "Walk",
    "__version__",
    "create_network",
    "list_fusions",
    "list_strategies",
    "load",
]

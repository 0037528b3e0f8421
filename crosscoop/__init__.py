"""Cross cooperative learning for semantic segmentation (Ikedo and Hotta, VISAPP 2022)."""

import importlib
from typing import TYPE_CHECKING

from crosscoop.version import __version__

if TYPE_CHECKING:
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
        module = "prediction.predictor" if name in ("Prediction", "Predictor", "load") else "network"
        return getattr(importlib.import_module(f"crosscoop.{module}"), name)


__all__ = [
    "Branch",
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Point",
    "Prediction",
    "Predictor",
    "Strategy",
    "Walk",
    "__version__",
    "create_network",
    "list_fusions",
    "list_strategies",
    "load",
]

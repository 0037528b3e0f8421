"""Cross cooperative learning for semantic segmentation (Ikedo and Hotta, VISAPP 2022)."""

import importlib
from typing import TYPE_CHECKING

from crosscoop.version import __version__

if TYPE_CHECKING:
    from crosscoop.network import (
        CooperativeNetwork,
        DeepLabV3Plus,
        Fusion,
        Strategy,
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
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Prediction",
    "Predictor",
    "Strategy",
    "__version__",
    "create_network",
    "list_fusions",
    "list_strategies",
    "load",
]

"""Cross cooperative learning for semantic segmentation (Ikedo and Hotta, VISAPP 2022)."""

from crosscoop.network import (
    CooperativeNetwork,
    DeepLabV3Plus,
    Fusion,
    Strategy,
    create_network,
    list_fusions,
    list_strategies,
)
from crosscoop.predictor import Prediction, Predictor, load

__version__ = "0.1.0"

__all__ = [
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Prediction",
    "Predictor",
    "Strategy",
    "create_network",
    "list_fusions",
    "list_strategies",
    "load",
]

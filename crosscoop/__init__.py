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

__version__ = "0.1.0"

__all__ = [
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Strategy",
    "create_network",
    "list_fusions",
    "list_strategies",
]

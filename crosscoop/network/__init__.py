"""The network, with one module per box of the paper's figures 2 to 4."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosscoop.network.branch import Branch, Point, Walk
    from crosscoop.network.cooperative import CooperativeNetwork
    from crosscoop.network.create import create_network
    from crosscoop.network.deeplabv3plus import DeepLabV3Plus
    from crosscoop.network.fusion import FUSIONS, Fusion, list_fusions
    from crosscoop.network.strategy import STRATEGIES, Strategy, list_strategies
else:

    def __getattr__(name: str) -> object:
        """Import a name on first use: most of them import timm, which files and tables do not need."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"crosscoop.network.{MODULES[name]}"), name)


MODULES = {
    **dict.fromkeys(("Branch", "Point", "Walk"), "branch"),
    "CooperativeNetwork": "cooperative",
    "create_network": "create",
    "DeepLabV3Plus": "deeplabv3plus",
    **dict.fromkeys(("FUSIONS", "Fusion", "list_fusions"), "fusion"),
    **dict.fromkeys(("STRATEGIES", "Strategy", "list_strategies"), "strategy"),
}
"""The modules of the public names."""

__all__ = [
    "FUSIONS",
    "STRATEGIES",
    "Branch",
    "CooperativeNetwork",
    "DeepLabV3Plus",
    "Fusion",
    "Point",
    "Strategy",
    "Walk",
    "create_network",
    "list_fusions",
    "list_strategies",
]

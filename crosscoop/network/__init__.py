"""The network, with one module per box of the paper's figures 2 to 4."""

from crosscoop.network.branch import Branch, Point, Walk
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.create import create_network
from crosscoop.network.deeplabv3plus import DeepLabV3Plus
from crosscoop.network.fusion import FUSIONS, Fusion, list_fusions
from crosscoop.network.strategy import STRATEGIES, Strategy, list_strategies

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

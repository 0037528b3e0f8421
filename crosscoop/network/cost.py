"""The cost of a network: parameters and multiply-adds."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.outputs import branch_names


@dataclass(frozen=True)
class PartCost:
    """The cost of a part of a network.

    Attributes:
        parameters: Number of its parameters.
        macs: Multiply-adds of its convolutions and matrix products for one image; None where they cannot be counted.
    """

    parameters: int
    macs: int | None


def count_parameters(module: nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def count_macs(module: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of a module's convolutions and matrix products.

    Args:
        module: A network, a branch or a backbone, in evaluation mode: otherwise batch norm updates its statistics.
        image: `(N, 3, H, W)`, on the module's device; on `meta`, nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        module(image)
    return int(counter.get_total_flops()) // 2


def without_weights(network: CooperativeNetwork) -> CooperativeNetwork:
    """Return a copy in evaluation mode on the device `meta`, which uses no memory and computes nothing."""
    weights = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in network.parameters()
    }
    statistics = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, weights | statistics).eval()


def branch_macs(network: CooperativeNetwork, height: int, width: int) -> list[int] | None:
    """Count the multiply-adds of each branch alone for one image; None where they cannot be counted.

    Args:
        network: The network.
        height: Height of the image in pixels.
        width: Its width.
    """
    try:
        twin, image = without_weights(network), torch.empty(1, 3, height, width, device="meta")
        return [count_macs(branch, image) for branch in twin.branches]
    except Exception:  # a user-defined module may depend on the values of a map
        return None


def cost_by_part(network: CooperativeNetwork, height: int, width: int) -> dict[str, PartCost]:
    """Count the cost of each backbone, each head (the rest of its branch), the exchanges and the complete network.

    Args:
        network: The network.
        height: Height of the image in pixels.
        width: Its width.

    Returns:
        The costs by the part's name, the complete network last. Multiply-adds are None for every part if one of its
        modules cannot run on the device `meta`.
    """
    parameters = {"total": count_parameters(network)}
    macs: dict[str, int] = {}
    branches = dict(zip(branch_names(len(network.branches)), network.branches, strict=True))
    for name, branch in branches.items():
        parameters |= {name: count_parameters(branch), f"{name}: backbone": count_parameters(branch.backbone)}
    try:
        twin, image = without_weights(network), torch.empty(1, 3, height, width, device="meta")
        macs["total"] = count_macs(twin, image)
        for name, branch in zip(branches, twin.branches, strict=True):
            macs |= {name: count_macs(branch, image), f"{name}: backbone": count_macs(branch.backbone, image)}
    except Exception:  # a user-defined operator may depend on the values of a map
        macs.clear()

    def rest(whole: str, *parts: str) -> PartCost:
        return PartCost(
            parameters[whole] - sum(parameters[part] for part in parts),
            macs[whole] - sum(macs[part] for part in parts) if macs else None,
        )

    costs: dict[str, PartCost] = {}
    for name in branches:
        costs[f"{name}: backbone"] = rest(f"{name}: backbone")
        costs[f"{name}: head"] = rest(name, f"{name}: backbone")
    if len(branches) > 1:
        costs["exchange"] = rest("total", *branches)
    return {**costs, "total": rest("total")}

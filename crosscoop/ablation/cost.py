"""The cost of a cell before it runs: parameters, multiply-adds and time."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from crosscoop.ablation.grid import Cell
from crosscoop.checkpoints.about import without_start
from crosscoop.data.loaders import SegmentationLoaders, open_data
from crosscoop.errors import CrosscoopError
from crosscoop.network import CooperativeNetwork, create_network
from crosscoop.network.cost import count_macs, count_parameters
from crosscoop.network.outputs import ALONE, branch_names, output_names
from crosscoop.training.loss import CrossEntropy


@dataclass(frozen=True)
class Cost:
    """The cost of a cell's network.

    Attributes:
        parameters: Its parameters.
        macs: Multiply-adds of its convolutions for one crop.
        crop_size: The crop's side in pixels.
        outputs: Multiply-adds for one crop that each output takes at inference: those of the branch if it runs alone,
            otherwise those of the network.
    """

    parameters: int
    macs: int
    crop_size: int
    outputs: dict[str, int]


def measure(cell: Cell) -> Cost:
    """Count a network's parameters and multiply-adds, on the meta device if its operators support this.

    Args:
        cell: The cell.

    Raises:
        CrosscoopError: The network cannot be created, or does not run.
    """
    data = open_data(cell.config)
    try:
        return _count(cell, data, "meta")
    except CrosscoopError:
        raise
    except Exception:  # a user-defined operator may depend on the values of a map
        try:
            return _count(cell, data, "cpu")
        except Exception as error:
            raise CrosscoopError(
                f"network: got {type(error).__name__} ({error}) from a forward pass, expected one that works on a "
                f"(1, 3, {data.crop_size}, {data.crop_size}) image. Fix the operator."
            ) from error


def _count(cell: Cell, data: SegmentationLoaders, device: str) -> Cost:
    with torch.device(device):
        network = _network(cell, data.dataset.num_classes).eval()
        crop = torch.zeros(1, 3, data.crop_size, data.crop_size)
        macs = count_macs(network, crop)
        names = branch_names(len(network.branches))
        alone = {name: count_macs(branch, crop) for name, branch in zip(names, network.branches, strict=True)}
    outputs = {
        **dict.fromkeys(output_names(len(names)), macs),
        **({name + ALONE: own for name, own in alone.items()} if network.exchanges else alone),
    }
    return Cost(count_parameters(network), macs, data.crop_size, outputs)


def estimate_seconds(cell: Cell) -> float | None:
    """Estimate the training time from the forward and backward pass of one crop, measured on this machine.

    Evaluation and data loading are not included. None if trainer sets neither max_steps nor max_epochs, or if the data
    is not available.

    Args:
        cell: The cell.
    """
    data = open_data(cell.config)
    trainer: dict[str, Any] = cell.config.get("trainer") or {}
    try:
        count = len(data.dataset.samples(data.dataset.train_split))
    except CrosscoopError:
        return None
    steps = planned_steps(trainer, max(count // data.batch_size, 1))
    if steps is None:
        return None
    device = "cuda" if torch.cuda.is_available() and trainer.get("accelerator") != "cpu" else "cpu"
    network = _network(cell, data.dataset.num_classes).train().to(device)
    crop = torch.rand(1, 3, data.crop_size, data.crop_size, device=device)
    mask = torch.zeros(1, data.crop_size, data.crop_size, dtype=torch.long, device=device)
    loss, started = CrossEntropy(), 0.0
    with torch.autocast(device, torch.bfloat16, enabled="bf16" in str(trainer.get("precision", ""))):
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            sum(loss(logits, mask) for logits in network(crop)).backward()
            float(sum(p.grad.sum() for p in network.parameters() if p.grad is not None))  # waits for the GPU
    return (time.perf_counter() - started) * data.batch_size * steps


def planned_steps(trainer: dict[str, Any], steps_per_epoch: int) -> int | None:
    """Return the number of steps of a training; None if trainer limits neither steps nor epochs.

    Args:
        trainer: The options of the trainer.
        steps_per_epoch: Number of steps per epoch.
    """
    limits = trainer.get("max_steps") or 0, steps_per_epoch * (trainer.get("max_epochs") or 0)
    return min((limit for limit in limits if limit > 0), default=None)  # for Lightning, -1 means no limit


def _network(cell: Cell, num_classes: int) -> CooperativeNetwork:
    try:
        return create_network(**{**without_start(cell.config.get("network", {})), "num_classes": num_classes})
    except TypeError as error:
        expected = "the options that `crosscoop fit --help` lists for network"
        raise CrosscoopError(f"network: {error}; expected {expected}.") from error

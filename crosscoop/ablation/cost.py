"""What a cell costs: parameters, multiply-adds and time, before it runs."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crosscoop.ablation.grid import Cell
from crosscoop.errors import CrosscoopError
from crosscoop.loss import CrossEntropy
from crosscoop.network import create_network
from crosscoop.report.runs import open_data


@dataclass(frozen=True)
class Cost:
    """What a cell's network costs.

    Attributes:
        parameters: Its parameters.
        macs: Multiply-adds of its convolutions for one crop.
        crop_size: The crop's side in pixels.
    """

    parameters: int
    macs: int
    crop_size: int


def measure(cell: Cell) -> Cost:
    """Count a network's parameters and multiply-adds, without memory for either.

    Args:
        cell: The cell.
    """
    data = open_data(cell.config)
    with torch.device("meta"):
        network = _network(cell, data.dataset.num_classes).eval()
        image = torch.zeros(1, 3, data.crop_size, data.crop_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(image)
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2, data.crop_size)


def estimate_seconds(cell: Cell) -> float | None:
    """Time one crop's forward and backward pass here, and multiply by what the training asks for.

    Evaluation and data loading are not counted. None where trainer says neither max_steps nor max_epochs.

    Args:
        cell: The cell.
    """
    data = open_data(cell.config)
    trainer: dict[str, Any] = cell.config.get("trainer") or {}
    steps_per_epoch = max(len(data.dataset.samples(data.dataset.train_split)) // data.batch_size, 1)
    steps = planned_steps(trainer, steps_per_epoch)
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
            float(sum(p.grad.sum() for p in network.parameters() if p.grad is not None))  # the GPU is done
    return (time.perf_counter() - started) * data.batch_size * steps


def planned_steps(trainer: dict[str, Any], steps_per_epoch: int) -> int | None:
    """How many steps a training is to take; None where trainer limits neither steps nor epochs.

    Args:
        trainer: The options of the trainer.
        steps_per_epoch: Steps of an epoch.
    """
    limits = trainer.get("max_steps") or 0, steps_per_epoch * (trainer.get("max_epochs") or 0)
    return min((limit for limit in limits if limit > 0), default=None)  # Lightning's word for no limit is -1


def _network(cell: Cell, num_classes: int) -> nn.Module:
    try:
        return create_network(**{**cell.config.get("network", {}), "num_classes": num_classes, "pretrained": False})
    except TypeError as error:
        expected = "the options that `crosscoop fit --help` lists for network"
        raise CrosscoopError(f"network: {error}; expected {expected}.") from error

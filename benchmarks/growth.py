"""Scaling of a training step in time and memory, the shares of its parts, and its distance from the machine's limit."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Setting, in_turn, now, quartiles, row
from benchmarks.training import PAIRS, cooperative
from crosscoop.network.exchange import Exchange
from crosscoop.training.loss import CrossEntropy

BASE = {"size": 128, "classes": 21, "batch": 2, "branches": 2}


def run(setting: Setting) -> list[Row]:
    """Measure a light pair, varying one of size, classes, batch size and branches at a time."""
    light = setting.pick(["test_resnet", "test_byobnet"], PAIRS["MobileNetV2 + EfficientNet-Lite0"])
    base = setting.pick({**BASE, "size": 32}, BASE)
    values = {
        "size": [128, 256, 384, 512],
        "classes": [2, 21, 80, 150],
        "batch": [1, 2, 4, 8],
        "branches": [1, 2, 3, 4],
    }
    rows = []
    for key, steps in values.items():
        for value in steps[: setting.pick(2, 4)] if key != "size" or not setting.quick else [32, 64]:
            options = {**base, key: value}
            work = step_of(light, setting.device, **options)
            (seconds,) = in_turn([work], setting.pick(1, 2), setting.device)
            rows.append({**row(f"{key} {value}", seconds, "", seconds), "growth": [key, value], "memory": saved(work)})
    return [*rows, *shares(light, setting, base), *limit(light, setting, base)]


def saved(work: Callable[[], None]) -> float:
    """Return the memory in MiB that a step keeps for its backward pass, weights included."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values()) / 2**20


def step_of(light: list[str], device: str, size: int, classes: int, batch: int, branches: int) -> Callable[[], None]:
    """Return a function that computes forward, loss and backward of `branches` branches, connected if there are two."""
    from crosscoop.network import create_network

    strategy = "cross_c1_c2" if branches == 2 else "none"
    network = create_network((light * 2)[:branches], classes, strategy=strategy).to(device).train()
    image = torch.rand(batch, 3, size, size, device=device)
    mask = torch.randint(classes, (batch, size, size), device=device)
    loss = CrossEntropy()

    def work() -> None:
        network.zero_grad()
        losses = [loss(logits, mask) for logits in network(image)]
        sum(losses[1:], losses[0]).backward()

    return work


def shares(light: list[str], setting: Setting, base: dict[str, int]) -> list[Row]:
    """Measure the shares of a forward pass by hooks: exchange, heads and backbones."""
    (network,) = cooperative(light, "cross_c1_c2", False)
    network.to(setting.device).train()
    image = torch.rand(base["batch"], 3, base["size"], base["size"], device=setting.device)
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0])
    for part, module in parts(network):
        watch(module, seconds, part, setting.device)
    repeats = setting.pick(1, 5)
    with torch.no_grad():
        network(image)
        seconds.clear()
        for _ in range(repeats):
            network(image)
    total = sum(spent[0] for spent in seconds.values())
    return [
        row(f"share of {part} in a forward", [spent[0] / total * 100], "", [100.0], unit="%")
        for part, spent in seconds.items()
    ]


def parts(network: Any) -> list[tuple[str, nn.Module]]:
    """Return the modules to measure, none inside another."""
    found = [("the exchange", module) for module in network.modules() if isinstance(module, Exchange)]
    for branch in network.branches:
        found.append(("the backbones", branch.backbone))
        found += [("ASPP", module) for module in (*branch.aspp.layers, branch.aspp.project)]
        decoder = branch.decoder
        found += [("decoder and classifier", module) for module in (decoder.project, decoder.first, decoder.second)]
        found.append(("decoder and classifier", branch.classifier))
    return found


def watch(module: nn.Module, seconds: dict[str, list[float]], part: str, device: str) -> None:
    """Accumulate the time that a module takes."""
    begins: list[float] = []
    module.register_forward_pre_hook(lambda *_: begins.append(now(device)))

    def end(*_: Any) -> None:
        seconds[part][0] += now(device) - begins.pop()

    module.register_forward_hook(end)


def limit(light: list[str], setting: Setting, base: dict[str, int]) -> list[Row]:
    """Compare multiply-adds per second of a step (three times those of a forward pass) with one large convolution's."""
    heavy = setting.pick(light, PAIRS["Xception-65 + ResNet-101"])
    large = torch.rand(2, 256, *setting.pick((8, 8), (64, 64)), device=setting.device)
    weight = torch.rand(256, 256, 3, 3, device=setting.device)
    rows = []
    for name, branches in {"light pair": light, "Xception-65 + ResNet-101": heavy}.items():
        (network,) = cooperative(branches, "cross_c1_c2", False)
        image = torch.rand(base["batch"], 3, base["size"], base["size"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
        work = step_of(branches, setting.device, **base)
        convolve = lambda: functional.conv2d(large, weight, padding=1)  # noqa: E731
        steps, convolutions = in_turn([work, convolve], setting.pick(1, 2), setting.device)
        own = [3 * counter.get_total_flops() / 2e9 / spent for spent in steps]
        best = [large.numel() * weight[..., 0, 0].numel() * 9 / 256 / 1e9 / spent for spent in convolutions]
        rows.append(row(f"{name}: step", own, "a convolution of 256 channels", best, unit="G multiply-adds / s"))
    print(f"median of the large convolution: {1000 * quartiles(convolutions)[1]:.1f} ms")
    return rows

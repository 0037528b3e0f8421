"""Training steps: the cost of the exchange, and the pair against two networks of segmentation-models-pytorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from segmentation_models_pytorch import DeepLabV3Plus
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.measure import Row, Setting, compare, peak_memory, row
from crosscoop.network import create_network
from crosscoop.training.loss import CrossEntropy

PAIRS = {
    "Xception-65 + ResNet-101": ["xception65", "resnet101"],
    "MobileNetV2 + EfficientNet-Lite0": ["mobilenetv2_100", "tf_efficientnet_lite0"],
}
CLASSES = 21


def run(setting: Setting) -> list[Row]:
    """Measure time and peak memory of a step for a heavy and a light pair."""
    pairs = setting.pick({"tiny pair": ["test_resnet", "test_byobnet"]}, PAIRS)
    size, batch = setting.pick((64, 2), (256, 2))  # smp requires multiples of 16
    options = (size, batch, setting.device)
    rows = []
    for name, branches in pairs.items():
        image = f"at {size} x {size}, batch {batch}"
        arms = {
            f"step with cross_c1_c2 and add, {name}, {image}": (
                ["cooperative", branches, "cross_c1_c2", False],
                "the same pair with none",
                ["cooperative", branches, "none", False],
                1.03,
            ),
            f"step with none and separable heads, {name}, {image}": (
                ["cooperative", branches, "none", True],
                "two smp DeepLabV3Plus in turn",
                ["smp", branches],
                1.0,
            ),
            f"step with none, separable heads and --model.channels_last true, {name}, {image}": (
                ["cooperative", branches, "none", True, True],
                "two smp DeepLabV3Plus in turn",
                ["smp", branches],
                1.0,
            ),
        }
        for what, (ours, against, theirs, target) in arms.items():
            steps = [step_of(options, *arm) for arm in (ours, theirs)]
            rows.append(compare(what, steps[0], against, steps[1], setting, at_most=target, repeats=5))
            del steps
            if not setting.quick and "add" in what:
                first, second = (peak_memory("benchmarks.training:step_of", options, *arm) for arm in (ours, theirs))
                memory = {"at_most": target, "unit": "MiB"}
                rows.append(row(f"peak memory of the {what}", [first["peak"]], against, [second["peak"]], **memory))
                rows[-1]["note"] = f"added by the steps: {first['added']:.0f} and {second['added']:.0f} MiB"
    return rows


def step_of(options: Sequence[Any], kind: str, *arguments: Any) -> Callable[[], None]:
    """Return a function that runs a training step of a pair, or of two smp networks in turn.

    Args:
        options: Side of the square image, batch size, device.
        kind: `cooperative` or `smp`.
        arguments: Arguments of the function of that name.
    """
    size, batch, device = options
    torch.manual_seed(0)
    image = torch.rand(batch, 3, size, size, device=device)
    mask = torch.randint(CLASSES, (batch, size, size), device=device)
    make = cooperative if kind == "cooperative" else smp
    steps = [_step(network, image, mask, device) for network in make(*arguments)]

    def work() -> None:
        for step in steps:
            step()

    return work


def _step(network: nn.Module, image: Tensor, mask: Tensor, device: str) -> Callable[[], None]:
    network.to(device).train()
    loss, optimizer = CrossEntropy(), SGD(network.parameters(), lr=0.007, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        outputs = network(image)
        losses = [loss(logits, mask) for logits in (outputs if isinstance(outputs, list) else [outputs])]
        sum(losses[1:], losses[0]).backward()
        optimizer.step()

    return step


def cooperative(
    branches: Sequence[str], strategy: str, separable: bool, channels_last: bool = False
) -> list[nn.Module]:
    """Create our pair as one network."""
    network: nn.Module = create_network(branches, CLASSES, strategy=strategy, separable=separable)
    return [network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)]


def smp(branches: Sequence[str], classes: int = CLASSES) -> list[nn.Module]:
    """Create a DeepLabV3Plus per encoder, with the parameters of our separable branches but fewer multiply-adds."""
    return [
        DeepLabV3Plus(f"tu-{name}", encoder_weights=None, decoder_atrous_rates=(6, 12, 18), classes=classes)
        for name in branches
    ]

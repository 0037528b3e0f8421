"""Inference on one image: the pair as in `crosscoop predict`, `--fast` or in bfloat16, against two smp networks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Row, Setting, in_turn, row
from benchmarks.training import CLASSES, PAIRS, smp
from crosscoop.data.dataset import colormap
from crosscoop.network import CooperativeNetwork, create_network
from crosscoop.prediction.predictor import Predictor


def run(setting: Setting) -> list[Row]:
    """Measure images of VOC's and Cityscapes' size, from a tensor to the logits of both branches and their sum.

    A light pair is also measured at 256 x 256 and there in bfloat16, which is very slow where it is emulated. With
    limited instructions, Cityscapes' size is left out.
    """
    rows = []
    pairs = setting.pick({"tiny pair": ["test_resnet", "test_byobnet"]}, PAIRS)
    for name, branches in pairs.items():
        network = realistic(create_network(branches, CLASSES, strategy="cross_c1_c2", separable=True), setting)
        names, palette = [str(i) for i in range(CLASSES)], list(colormap(CLASSES))
        plain, bf16, fast = (
            Predictor(network, names, palette, device=setting.device, fast=on) for on in (False, False, True)
        )
        bf16.bfloat16 = True
        peers = [peer.eval().to(setting.device) for peer in smp(branches)]
        sizes = [(256, 256)] * ("101" not in name) + [(513, 513)] + [(1024, 2048)] * (not setting.limits)
        for height, width in setting.pick([(33, 49)], sizes):
            large = height * width > 2**20 and "101" in name
            image = torch.randint(256, (1, 3, height, width), dtype=torch.uint8)
            works: dict[str, Callable[[], object]] = {
                "fast": partial(fast.logits, image),
                "plain": partial(plain.logits, image),
                **({"bf16": partial(bf16.logits, image)} if height < 513 else {}),
                "smp": partial(theirs, peers, image.to(setting.device)),
            }
            repeats = setting.pick(1, 1 if large else 3)
            measured = in_turn(list(works.values()), repeats, setting.device, warm_up=0 if large else 1)
            seconds = dict(zip(works, measured, strict=True))
            what, against = f"{name}, one image of {height} x {width}", "two smp DeepLabV3Plus, eager"
            other = seconds.pop("smp")
            for kind, times in seconds.items():
                rows.append(row(f"{kind}: {what}", times, against, other, at_most=0.6 if kind == "fast" else None))
            probabilities = [predictor.logits(image)["ensemble"].float().softmax(1) for predictor in (fast, plain)]
            difference = float((probabilities[0] - probabilities[1]).abs().max())
            rows[-len(seconds)]["note"] = f"largest difference of a probability from plain, {what}: {difference:.4f}"
    return rows


def realistic(network: CooperativeNetwork, setting: Setting) -> CooperativeNetwork:
    """Run one forward pass in training mode, so that batch norm statistics fit the random weights."""
    network.train().to(setting.device)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network(torch.rand(8, 3, 128, 128, device=setting.device) * torch.rand(8, 3, 1, 1, device=setting.device))
    return network.eval()


@torch.inference_mode()
def theirs(peers: list[nn.Module], image: Tensor) -> list[Tensor]:
    """Return the logits of smp's networks, which require sides that are multiples of 16."""
    height, width = image.shape[-2:]
    padded = functional.pad(image.float() / 255, (0, -width % 16, 0, -height % 16))
    return [peer(padded)[..., :height, :width] for peer in peers]

"""Every network that `fit` can train can be tested, loaded, predicted with, reported, exported and pushed.

Here it is exported to .safetensors; tests/export writes one branch, and a pair with summed backbones, to the others.
"""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import STREETS, crosscoop, fit
from torch import Tensor, nn

import crosscoop as package
from crosscoop.data.dataset import Array
from crosscoop.export.read import read_network
from crosscoop.network import Strategy, list_fusions, list_strategies
from crosscoop.network.branch import Branch, Point, Walk
from crosscoop.network.fusion import Fusion
from crosscoop.network.layers import resize
from crosscoop.network.outputs import branch_names, main_output, output_names

ONE, TWO, THREE = ("[test_resnet]", "[test_resnet, test_byobnet]", "[test_resnet, test_byobnet, test_resnet]")
SUMMED = "[{backbone: [test_resnet, test_byobnet]}, test_byobnet, test_resnet]"
DEPTH = "[{backbone: test_resnet, depth: 4}, test_byobnet]"
OWN_FUSION = "{class_path: test_catalogue.Weighted, init_args: {start: 0.25}}"
OWN = "[test_resnet, {backbone: test_byobnet, class_path: test_catalogue.Plain, init_args: {channels: 8}}]"
MEANS = {"test_resnet": [0.5, 0.5, 0.5], "test_byobnet": [0.485, 0.456, 0.406]}
"""What timm subtracts from an image."""

early_aspp = Strategy(["connection1", "aspp"], direction="bottom_to_top", detach=True)


class Weighted(Fusion):
    """A user's operator."""

    def __init__(self, channels: int, start: float = 0.5) -> None:
        super().__init__(channels)
        self.weight = nn.Parameter(torch.full((channels, 1, 1), start))

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        return own + self.weight * received


class Plain(Branch):
    """A user's branch: a classifier on the backbone's output."""

    def __init__(self, backbone, num_classes: int, channels: int = 16) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Conv2d(backbone.high_channels, channels, 1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.points = [Point("connection1", "connection1", backbone.high_channels)]

    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        _, high = self.backbone(image)
        high = yield high
        logits = self.classifier(self.project(high).relu())
        yield resize(logits, image.shape[-2:]) if upsample else logits


NETWORKS: dict[str, tuple[int, str, str, str]] = {
    "one branch": (1, ONE, "none", "add"),
    "none": (2, TWO, "none", "add"),
    "one_way": (2, TWO, "one_way", "add"),
    "cross_c1": (2, TWO, "cross_c1", "concat"),
    "cross_c2": (2, TWO, "cross_c2", "gate"),
    "cross_c1_c2": (2, TWO, "cross_c1_c2", "cross_stitch"),
    "channel exchange": (2, TWO, "cross_c2", "channel_exchange"),
    "three branches, none": (3, THREE, "none", "add"),
    "three branches, both": (3, THREE, "cross_c1_c2", "rectify"),
    "three branches, top_to_bottom": (3, THREE, "one_way", "add"),
    "three branches, bottom_to_top": (3, THREE, "{points: [connection2, decoder], direction: bottom_to_top}", "concat"),
    "summed backbones": (3, SUMMED, "{points: [connection1, connection2]}", "gate"),
    "depth, cross": (2, DEPTH, "cross", "average"),
    "own branch": (2, OWN, "{points: [connection1]}", "add"),
    "own strategy and fusion": (2, TWO, "test_catalogue.early_aspp", OWN_FUSION),
}
"""The number of branches, and the options branches, strategy and fusion."""


def test_catalogue_is_whole():
    strategies, fusions = ({network[place] for network in NETWORKS.values()} for place in (2, 3))
    assert set(list_strategies()) <= strategies and set(list_fusions()) <= fusions


def labels_of(checkpoint: Path | str, image: Array) -> dict[str, Array]:
    """The labels of every output that a checkpoint predicts; the main ones under None, too."""
    prediction = package.load(checkpoint, device="cpu")(image)
    assert np.array_equal(prediction.labels, prediction.branch_labels[main_output(prediction.branch_labels)])
    assert prediction.compare().width > prediction.draw().width
    return prediction.branch_labels


@pytest.mark.parametrize("name", NETWORKS)
def test_network_goes_through_every_command(name: str, tmp_path: Path) -> None:
    number, branches, strategy, fusion = NETWORKS[name]
    run, image = tmp_path / "run", STREETS.samples("test")[0].image()
    network = ["--network.branches", branches, "--network.strategy", strategy, "--network.fusion", fusion]
    fit(run, shlex.join(network), "--network.channels 8 --trainer.limit_train_batches 1 --trainer.limit_val_batches 1")
    crosscoop("test", "--run", run, "--trainer.accelerator cpu --trainer.enable_progress_bar false")

    outputs, several = output_names(number), number > 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["outputs"]) == outputs and metrics["miou"] == metrics["outputs"][main_output(outputs)]["miou"]
    with (run / "images.csv").open() as file:
        columns = next(csv.reader(file))
    assert columns == ["image", *(f"miou_{output}" for output in outputs), *["disagreement"] * several]
    assert (run / "branches.json").exists() == several
    if several:
        shares = json.loads((run / "branches.json").read_text())["all"]
        only = [f"only_{branch}" for branch in branch_names(number)]
        assert list(shares) == ["pixels", *only, "neither", "saved", "lost", "disagree"]
        assert sum(shares[key] for key in only) <= shares["disagree"] + 1e-9

    labels = labels_of(run / "best.ckpt", image)
    assert list(labels) == outputs

    crosscoop("report", run, "--output", tmp_path / "report.html", "--num_images 1")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img src") == 2 + len(outputs) + several
    assert page.count('class="missing"') == 1 - several and 'class="notices"' not in page
    assert all((f"only {branch}" in page) == several for branch in branch_names(number))

    crosscoop("export", run / "best.ckpt", "--format safetensors")
    crosscoop("push", run / "best.ckpt", "--folder", tmp_path / "hub")
    exported = [run / "best.safetensors", f"hf-hub:{tmp_path / 'hub'}"]
    if name == "summed backbones":
        means = [list(MEANS.values()), [MEANS["test_byobnet"]], [MEANS["test_resnet"]]]
        for file in (run / "best.ckpt", *exported):
            normalisation = read_network(file)[1].normalisation
            assert [[each["mean"] for each in backbones] for backbones in normalisation.values()] == means
        assert "test_resnet + test_byobnet" in (tmp_path / "hub/README.md").read_text()
    for file in exported:
        again = labels_of(file, image)
        assert list(again) == outputs
        assert min(float((again[output] == labels[output]).mean()) for output in outputs) > 0.99

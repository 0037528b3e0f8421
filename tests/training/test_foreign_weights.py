"""Weights of other libraries: smp's DeepLabV3+ gives equal logits, mmsegmentation's fits in names and shapes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import create_network
from crosscoop.training.weights import start_from

CLASSES = list("abcde")


def make(backbone: str, head: str, output_stride: int = 16, **arguments: Any):
    branch = {"backbone": backbone, "class_path": head, "init_args": {"channels": 16, **arguments}}
    return create_network([branch], 5, "none", output_stride=output_stride).eval()


def smp(encoder: str = "tu-test_resnet", **options: Any) -> nn.Module:
    """A network of smp, random in every value."""
    library = pytest.importorskip("segmentation_models_pytorch")
    network = library.DeepLabV3Plus(encoder, encoder_weights=None, classes=5, decoder_channels=16, **options).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))
    return network


@pytest.mark.parametrize(
    ("options", "stride", "arguments"),
    [
        ({}, 16, {}),
        ({"decoder_aspp_separable": False, "encoder_output_stride": 8}, 8, {"separable": False}),
        ({"decoder_atrous_rates": (2, 4, 6)}, 16, {"atrous_rates": [2, 4, 6]}),
    ],
)
def test_weights_of_smp_give_its_logits(tmp_path, options, stride, arguments):
    theirs, image = smp(**options), torch.rand(2, 3, 96, 128)
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours = make("test_resnet", "deeplabv3plus_smp", stride, **arguments)
    lines = start_from(ours, CLASSES, str(tmp_path / "smp.pth"))
    assert lines[1:] == ["  taken: network: backbone, aspp, refine, project, join, classifier"]
    backbone = ours.branches[0].backbone
    with torch.no_grad():
        expected = theirs((image - backbone.mean) / backbone.std)
        assert expected.std() > 1e-3 and torch.equal(ours(image)[0], expected)
        assert torch.equal(ours(image, upsample=False)[0], expected), "its last upsampling is another one than ours"


def test_other_forms_of_the_file_serve_as_well(tmp_path):
    state = smp().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "b.pth")
    results = []
    for name in ("a.safetensors", "b.pth"):
        network = make("test_resnet", "deeplabv3plus_smp")
        start_from(network, CLASSES, str(tmp_path / name))
        results.append(network(torch.ones(1, 3, 32, 32))[0])
    assert torch.equal(*results)


def test_other_numbers_of_classes_leave_the_classifier_out(tmp_path):
    torch.save(smp(aux_params={"classes": 3}).state_dict(), tmp_path / "smp.pth")
    network = create_network(
        [{"backbone": "test_resnet", "class_path": "deeplabv3plus_smp", "init_args": {"channels": 16}}], 3, "none"
    )
    lines = start_from(network, ["a", "b", "c"], str(tmp_path / "smp.pth"))
    assert lines[2:] == ["  left out: network: classifier; classification_head", "  newly drawn: network: classifier"]


def test_own_resnets_of_smp_dilate_differently(tmp_path, capsys):
    torch.save(smp("resnet18").state_dict(), tmp_path / "smp.pth")
    start_from(make("resnet18", "deeplabv3plus_smp"), CLASSES, str(tmp_path / "smp.pth"))
    assert "smp's own ResNets also dilate the first block of a dilated stage" in capsys.readouterr().err


def mmseg() -> dict[str, Tensor]:
    """The names and shapes of mmsegmentation's deeplabv3plus_r101-d8 for 5 classes, with 16 channels instead of 512."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def module(name: str, out: int, into: int, kernel: int = 1) -> None:
        shapes[f"{name}.conv.weight"] = (out, into, kernel, kernel)
        norm(f"{name}.bn", out)

    def separable(name: str, out: int, into: int) -> None:
        shapes[f"{name}.depthwise_conv.conv.weight"] = (into, 1, 3, 3)
        norm(f"{name}.depthwise_conv.bn", into)
        module(f"{name}.pointwise_conv", out, into)

    for i, (into, out) in zip((0, 3, 6), ((3, 32), (32, 32), (32, 64)), strict=True):
        shapes[f"backbone.stem.{i}.weight"] = (out, into, 3, 3)
        norm(f"backbone.stem.{i + 1}", out)
    into = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 23, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            prefix = f"backbone.layer{stage}.{block}"
            for i, (out, given, kernel) in enumerate(((width, into, 1), (width, width, 3), (4 * width, width, 1)), 1):
                shapes[f"{prefix}.conv{i}.weight"] = (out, given, kernel, kernel)
                norm(f"{prefix}.bn{i}", out)
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, into, 1, 1)
                norm(f"{prefix}.downsample.1", 4 * width)
            into = 4 * width
    head, channels = "decode_head", 16
    shapes |= {f"{head}.conv_seg.weight": (5, channels, 1, 1), f"{head}.conv_seg.bias": (5,)}
    module(f"{head}.image_pool.1", channels, 2048)
    module(f"{head}.aspp_modules.0", channels, 2048)
    for i in (1, 2, 3):
        separable(f"{head}.aspp_modules.{i}", channels, 2048)
    module(f"{head}.bottleneck", channels, 5 * channels, 3)
    module(f"{head}.c1_bottleneck", 48, 256)
    separable(f"{head}.sep_bottleneck.0", channels, channels + 48)
    separable(f"{head}.sep_bottleneck.1", channels, channels)
    module("auxiliary_head.convs.0", 256, 1024, 3)
    shapes |= {"auxiliary_head.conv_seg.weight": (5, 256, 1, 1), "auxiliary_head.conv_seg.bias": (5,)}
    return {key: torch.rand(shape) for key, shape in shapes.items()}


def test_weights_of_mmsegmentation_fit_to_the_last_one(tmp_path):
    state = mmseg()
    torch.save({"meta": {"CLASSES": CLASSES}, "state_dict": state}, tmp_path / "mmseg.pth")
    network = make("resnet101c", "deeplabv3plus_mmseg", 8)
    lines = start_from(network, CLASSES, str(tmp_path / "mmseg.pth"))
    assert lines[1:] == [
        "  taken: network: backbone, aspp, project, join, second, classifier",
        "  left out: auxiliary_head",
    ]
    branch = network.branches[0]
    theirs = state["decode_head.bottleneck.conv.weight"]
    assert torch.equal(branch.aspp.project[0].weight, torch.cat([theirs[:, 16:], theirs[:, :16]], 1)), (
        "pooled map first"
    )
    assert torch.equal(branch.backbone.network.bn1.weight, state["backbone.stem.7.weight"])
    assert [layer[0].dilation[0] for layer in branch.aspp.layers[1:4]] == [12, 24, 36]
    assert network(torch.rand(1, 3, 33, 49))[0].shape == (1, 5, 33, 49)


@pytest.mark.parametrize("head", ["deeplabv3plus", "deeplabv3plus_mmseg"])
def test_another_head_is_refused_and_its_backbone_taken_on_request(tmp_path, head):
    torch.save(smp().state_dict(), tmp_path / "smp.pth")
    network = make("test_resnet", head)
    with pytest.raises(CrosscoopError, match=f"head of network: got deeplabv3plus_smp, expected {head}"):
        start_from(network, CLASSES, str(tmp_path / "smp.pth"))
    lines = start_from(network, CLASSES, {"source": str(tmp_path / "smp.pth"), "partial": True})
    assert lines[1].startswith("  taken: network: backbone, ")


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors", "ckpt"])
def test_pickled_code_is_not_run(tmp_path, suffix):
    torch.save({"segmentation_head.0.weight": Payload(tmp_path / "trace")}, tmp_path / f"evil.{suffix}")
    with pytest.raises(CrosscoopError, match=r"cannot be read as weights|not a checkpoint"):
        start_from(make("test_resnet", "deeplabv3plus_smp"), CLASSES, str(tmp_path / f"evil.{suffix}"))
    assert not (tmp_path / "trace").exists()


def test_weights_of_something_else_are_told(tmp_path):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CrosscoopError, match=r"has the weights conv1\.weight; .*belong to network\.pretrained"):
        start_from(make("test_resnet", "deeplabv3plus_smp"), CLASSES, str(tmp_path / "resnet.pth"))

"""Backbones from timm: features, strides, statistics, names, and weights from local files."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import ROOT
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import create_network
from crosscoop.network.backbone import Backbone

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
SMALL = {"test_resnet": HALF, "test_byobnet": IMAGENET, "test_efficientnet": IMAGENET, "test_convnext": HALF}
WEIGHTS = ROOT.parent / "shared" / "weights"


# -- features


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("depth", [None, 4, 5])
@pytest.mark.parametrize("name", SMALL)
def test_low_and_high_have_the_promised_strides_and_channels(name, depth, output_stride):
    backbone = Backbone(name, output_stride, depth).eval()
    low, high = backbone(torch.rand(2, 3, 64, 96))
    assert low.shape == (2, backbone.low_channels, 16, 24)
    assert high.shape == (2, backbone.high_channels, 64 // output_stride, 96 // output_stride)
    assert backbone.stride == output_stride


def test_depth_leaves_the_deeper_stages_out():
    assert Backbone("test_resnet", depth=4).high_channels != Backbone("test_resnet").high_channels
    assert Backbone("test_resnet", 8, depth=3).high_channels == timm.create_model(
        "test_resnet", features_only=True
    ).feature_info.channels()[2]  # fmt: skip


@pytest.mark.parametrize("name", ["legacy_xception", "test_mambaout"])
def test_network_that_cannot_dilate_stops_at_a_depth(name):
    with pytest.raises(CrosscoopError, match=rf"cannot dilate .* \{{backbone: {name}, depth: 4\}}"):
        Backbone(name)
    backbone = Backbone(name, depth=4).eval()
    low, high = backbone(torch.rand(1, 3, 64, 96))
    assert (backbone.stride, low.shape[1], high.shape[1]) == (16, backbone.low_channels, backbone.high_channels)
    assert high.shape[-2:] == (4, 6)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_atrous_rates_follow_the_output_stride(output_stride, rates, separable):
    network = create_network(["test_resnet"], 5, "none", output_stride=output_stride, channels=16, separable=separable)
    layers = network.branches[0].aspp.layers
    assert [layer[0].dilation for layer in layers[1:4]] == [(rate, rate) for rate in rates]


def test_atrous_rates_by_option():
    options = {"channels": 16, "atrous_rates": [2, 4, 6]}
    for stride, rates in ((16, [2, 4, 6]), (8, [4, 8, 12])):
        network = create_network(["test_resnet"], 5, "none", output_stride=stride, **options)
        assert [layer[0].dilation[0] for layer in network.branches[0].aspp.layers[1:4]] == rates


def test_summed_backbones_feed_one_head_with_the_sum_of_their_features():
    network = create_network([{"backbone": ["test_resnet", "test_byobnet"]}], 5, "none", channels=16).eval()
    (branch,), image = network.branches, torch.rand(1, 3, 49, 65)
    first, second = branch.backbone.backbones
    (low1, high1), (low2, high2) = first(image), second(image)
    low, high = branch.backbone(image)
    torch.testing.assert_close(low, branch.backbone.lows[0](low1) + branch.backbone.lows[1](low2))
    torch.testing.assert_close(high, branch.backbone.highs[0](high1) + branch.backbone.highs[1](high2))
    assert network(image)[0].shape == (1, 5, 49, 65)
    logits = network.train()(torch.rand(2, 3, 64, 96))[0]
    torch.nn.functional.cross_entropy(logits, torch.randint(5, (2, 64, 96))).backward()
    assert all(
        parameter.grad.any()
        for each in (branch.backbone.lows, branch.backbone.highs)
        for parameter in each.parameters()
    )
    assert all(next(backbone.parameters()).grad.any() for backbone in (first, second))


@pytest.mark.parametrize(
    ("name", "depth", "multiple"),
    [
        ("dla46_c", 4, 16),
        ("dla46_c", 3, 8),
        ("hrnet_w18_small", 4, 32),
        ("resnetaa34d", None, 16),
        ("test_resnet", 4, 1),
    ],
)
def test_images_are_padded_to_what_a_network_takes(name, depth, multiple):
    backbone = Backbone(name, 8 if depth == 3 else 16, depth).eval()
    assert backbone.multiple == multiple and backbone.network.training is False
    for height, width in ((65, 97), (49, 131)):
        low, high = backbone(torch.rand(1, 3, height, width))
        assert low.shape[2:] == (-(-height // 4), -(-width // 4))
        assert high.shape[2:] == (-(-height // backbone.stride), -(-width // backbone.stride))
    image, (mean, std) = torch.rand(1, 3, 64, 96), (backbone.mean, backbone.std)
    features = backbone.network((image - mean) / std)
    for actual, expected in zip(backbone(image), (features[backbone.low_index], features[-1]), strict=True):
        assert torch.equal(actual, expected), "no padding is needed"
    padded = torch.nn.functional.pad((image[..., :-9] - mean) / std, (0, 9 if multiple > 8 else -87 % multiple))
    expected = backbone.network(padded)[backbone.low_index][..., :22]
    assert torch.equal(backbone(image[..., :-9])[0], expected), "zeros to the right, and cut off"


def test_a_padded_network_exports_with_dynamic_sizes():
    backbone, dynamic = Backbone("dla46_c", depth=4).eval(), torch.export.Dim.DYNAMIC
    program = torch.export.export(
        backbone, (torch.rand(2, 3, 97, 131),), dynamic_shapes={"image": {0: dynamic, 2: dynamic, 3: dynamic}}
    ).module()
    for size in ((1, 64, 64), (3, 65, 98), (1, 161, 50)):
        image = torch.rand(size[0], 3, *size[1:])
        assert all(torch.equal(*pair) for pair in zip(program(image), backbone(image), strict=True))


@pytest.mark.parametrize(
    "name", ["maxvit_rmlp_pico_rw_256", "efficientformerv2_s0", "own_fixed:fixed", "own_fixed:table"]
)
def test_a_network_of_fixed_size_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / "own_fixed.py").write_text(FIXED)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CrosscoopError, match=rf"'{name}' accepts only images of certain sizes, such as (224|256) x"):
        Backbone(name, depth=4)


def test_a_network_that_cannot_be_tried_is_taken_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "own_fixed.py").write_text(FIXED)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = Backbone("own_fixed:reads_values", depth=4).eval()
    assert backbone.multiple == 1 and backbone(torch.rand(1, 3, 64, 64))[1].shape[2:] == (4, 4)


FIXED = """
import timm
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet

def make(name, pretrained, options, check):
    layout = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
    network = build_model_with_cfg(ResNet, name, pretrained, **layout, **options)
    network.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))
    return network

@register_model
def fixed(pretrained=False, **options):
    def check(image):
        assert image.shape[-2:] == (224, 224)
    return make("fixed", pretrained, options, check)

@register_model
def table(pretrained=False, **options):
    def check(image):
        torch.zeros(224)[torch.arange(image.shape[-1])]
    network = make("table", pretrained, options, check)
    network.pretrained_cfg = {**network.pretrained_cfg, "fixed_input_size": True}
    return network

@register_model
def reads_values(pretrained=False, **options):
    def check(image):
        float(image.sum())
    return make("reads_values", pretrained, options, check)
"""


@pytest.mark.parametrize("name", SMALL)
def test_backbone_normalises_with_its_own_statistics(name):
    mean, std = [torch.tensor(values).view(1, 3, 1, 1) for values in SMALL[name]]
    backbone, image, received = Backbone(name).eval(), torch.rand(1, 3, 32, 32), []
    backbone.network.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    backbone(image)
    torch.testing.assert_close(received, [(image - mean) / std])


def test_statistics_are_no_part_of_a_checkpoint():
    assert not {"mean", "std"} & set(Backbone("test_resnet").state_dict())


# -- names


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_resnett", {}, "got 'test_resnett', expected the name of a timm network. Similar names: test_resnet,"),
        ("Xception65", {}, "Similar names: xception65,"),
        ("zzzzzz", {}, "`timm.list_models\\(\\)` lists all names"),
        ("test_resnet.in22k", {}, "Invalid pretrained tag .* Expected one of test_resnet.r160_in1k"),
        ("no_such_module:mine", {}, "module 'no_such_module' cannot be imported .* PYTHONPATH"),
        ("test_vit", {"depth": 4}, r"got depth 4, but all blocks of a plain vision transformer have the same stride"),
        ("ghostnet_050", {}, "cannot dilate to output stride 16"),
        ("test_resnet", {"depth": 3}, "ends at stride 8, expected output stride 16. Set depth to 4"),
        ("test_resnet", {"depth": 6}, "got depth 6, expected 2 to 5"),
        ("test_convnext", {"depth": 1}, "got depth 1, expected 2 to 5"),
    ],
)
def test_wrong_name_or_depth_is_told(name, options, message):
    with pytest.raises(CrosscoopError, match=message):
        Backbone(name, **options)


OWN = """
import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

default_cfgs = generate_default_cfgs({"own_described.mine": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}})

@register_model
def own_described(pretrained=False, **options):
    layout = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
    return build_model_with_cfg(ResNet, "own_described", pretrained, **layout, **options)

@register_model
def own_plain(pretrained=False, **options):
    return timm.create_model("test_resnet", **options)
"""


@pytest.mark.parametrize(
    ("name", "mean"),
    [("own_plain", HALF[0]), ("own_described", [0.1, 0.2, 0.3]), ("own_described.mine", [0.1, 0.2, 0.3])],
)
def test_network_of_the_users_own_module(tmp_path, monkeypatch, name, mean):
    (tmp_path / "own_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    network = create_network([f"own_backbone:{name}"], 5, "none", channels=16).eval()
    torch.testing.assert_close(network.branches[0].backbone.mean.flatten(), torch.tensor(mean))
    assert network(torch.rand(1, 3, 33, 49))[0].shape == (1, 5, 33, 49)


# -- weights from a local file


def published(name: str, **options: Any) -> dict[str, Tensor]:
    """The state of timm's whole network, with its classifier, random in every value."""
    state = timm.create_model(name, **options).state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.normal_().mul_(0.1).add_(1 if key.endswith("running_var") else 0)
    return state


def write(state: dict[str, Tensor], folder: Path, kind: str) -> Path:
    path = folder / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "checkpoint" else state, path)
    return path


def timms_own(name: str, path: Path, image: Tensor, **options: Any) -> list[Tensor]:
    """What timm makes of a file and an image."""
    overlay = {"file": str(path)}
    network = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    mean, std = [torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")]
    features = network.eval()((image - mean) / std)
    low, high = features[network.feature_info.reduction().index(4)], features[-1]
    return [low, high]


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
@pytest.mark.parametrize("name", SMALL)
def test_file_gives_the_features_of_timms_own_loading(tmp_path, name, kind):
    path, image = write(published(name), tmp_path, kind), torch.rand(1, 3, 64, 96)
    expected = timms_own(name, path, image, output_stride=16)
    actual = Backbone(name, pretrained=str(path)).eval()(image)
    assert expected[1].std() > 0
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_file_of_the_whole_network_loads_into_one_that_stops_earlier(tmp_path):
    path, image = write(published("test_convnext"), tmp_path, "safetensors"), torch.rand(1, 3, 64, 96)
    actual = Backbone("test_convnext", depth=4, pretrained=str(path)).eval()(image)
    expected = timms_own("test_convnext", path, image, out_indices=(0, 1, 2))
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_half_precision_file_gives_single_precision_weights(tmp_path):
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in published("test_resnet").items()
    }
    loaded = Backbone("test_resnet", pretrained=str(write(state, tmp_path, "pth"))).network.state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded["layer2.0.conv1.weight"], state["layer2.0.conv1.weight"].float())


def test_each_branch_has_its_file(tmp_path):
    state = published("test_resnet")
    path = write(state, tmp_path, "pth")
    network = create_network(["test_resnet"] * 2, 5, pretrained=[str(path), False], channels=16)
    top, bottom = [branch.backbone.network.state_dict()["layer1.0.conv1.weight"] for branch in network.branches]
    assert torch.equal(top, state["layer1.0.conv1.weight"]) and not torch.equal(bottom, top)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), r"1 missing: layer2.0.conv1.weight"),
        (
            lambda state: state.update({"bn1.weight": torch.ones(7)}),
            r"1 with another shape: bn1.weight \(7,\) instead of \(32,\)",
        ),
    ],
)
def test_file_that_does_not_fit_names_the_keys(tmp_path, change, message):
    state = published("test_resnet")
    change(state)
    with pytest.raises(CrosscoopError, match=f"does not fit backbone 'test_resnet': .*{message}"):
        Backbone("test_resnet", pretrained=str(write(state, tmp_path, "pth")))


def test_file_of_another_network_names_missing_and_unknown_keys(tmp_path):
    path = write(published("test_byobnet"), tmp_path, "safetensors")
    with pytest.raises(CrosscoopError, match=r"\d+ missing: conv1.*, \.\.\.; .*\d+ not in this network: .*stages_"):
        Backbone("test_resnet", pretrained=str(path))


def test_missing_file_is_told(tmp_path):
    with pytest.raises(CrosscoopError, match=re.escape(f"{tmp_path}/none.pth does not exist")):
        Backbone("test_resnet", pretrained=f"{tmp_path}/none.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02]q\x00."])
def test_file_that_holds_no_weights_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CrosscoopError, match="cannot be read as weights"):
        Backbone("test_resnet", pretrained=f"{tmp_path}/{name}")


class Malicious:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run(tmp_path):
    torch.save({"state_dict": Malicious(tmp_path / "trace")}, tmp_path / "weights.pth")
    with pytest.raises(CrosscoopError, match="cannot be read as weights"):
        Backbone("test_resnet", pretrained=f"{tmp_path}/weights.pth")
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "trace").exists(), "the file was harmless"


# -- real weights


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mobilenetv2_100", "mobilenetv2_100"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("timm_resnet50v2_gluon:resnet50v2_gluon_c4", "resnet50v2_gluon_c4"),
    ],
)
def test_shared_weights_load_whole(monkeypatch, name, file):
    path = WEIGHTS / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    monkeypatch.syspath_prepend(WEIGHTS)
    backbone, image = Backbone(name, pretrained=str(path)).eval(), torch.rand(1, 3, 65, 97)
    given = {key.replace(".", "_"): value for key, value in load_file(path).items()}
    for key, value in backbone.network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, given[key.replace(".", "_")].float())
    expected = timms_own(name.rpartition(":")[2], path, image, output_stride=16)
    assert all(torch.equal(*pair) for pair in zip(backbone(image), expected, strict=True))
    assert nn.functional.relu(expected[1]).any()

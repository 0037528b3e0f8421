"""Plain vision transformers: any image size, patches of 14 and 16, timm's own maps, export."""

import pytest
import timm
import torch
from torch import Tensor

from crosscoop.checkpoints.about import About
from crosscoop.errors import CrosscoopError
from crosscoop.export.onnx import read_onnx, write_onnx
from crosscoop.export.parity import parity
from crosscoop.export.prepare import Exportable
from crosscoop.network import create_network
from crosscoop.network.backbone import Backbone
from crosscoop.network.cooperative import by_name
from crosscoop.network.layers import resize
from crosscoop.network.pyramid import RelativePositions

SMALL = {"img_size": 56, "embed_dim": 24, "depth": 2, "num_heads": 2}
KINDS = {
    "test_vit": ("test_vit", {}),
    "patch14": ("vit_small_patch14_dinov2", SMALL),
    "rotary": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}),
    "eva": ("eva02_tiny_patch14_224", SMALL),
    "beit": ("beit_base_patch16_224", {**SMALL, "img_size": 64}),
}


@pytest.fixture(params=KINDS)
def tiny(request, monkeypatch):
    """The name of a backbone, of which timm creates a tiny version; random in every value."""
    name, small = KINDS[request.param]
    create = timm.create_model

    def smaller(*args, **options):
        network = create(*args, **({**small, **options} if args[0] == name else options))
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
        return network

    monkeypatch.setattr(timm, "create_model", smaller)
    return name


@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_have_the_promised_sizes_and_reach_every_parameter(tiny, output_stride):
    backbone = Backbone(tiny, output_stride)
    for height, width in ((64, 64), (97, 131)):
        low, high = backbone(torch.rand(2, 3, height, width))
        assert low.shape == (2, backbone.low_channels, -(-height // 4), -(-width // 4))
        assert high.shape == (2, backbone.high_channels, -(-height // output_stride), -(-width // output_stride))
    (low.square().mean() + high.square().mean()).backward()
    without = [key for key, each in backbone.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []


def test_high_is_timms_own_map_at_its_own_size(tiny, tmp_path):
    options = {} if tiny.startswith("beit") else {"dynamic_img_size": True}
    network = timm.create_model(tiny, num_classes=0, **options).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone(tiny, pretrained=str(tmp_path / "weights.pth")).eval()
    side = network.patch_embed.img_size[0]
    image = torch.rand(1, 3, side, side)
    given = (image - backbone.mean) / backbone.std
    if network.patch_embed.patch_size[0] == 14:  # images are resized by 14/16
        given = resize(given, (side // 14 * 16,) * 2)
        image = resize(given, (side, side))
    else:
        image = given
    (expected,) = network.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)
    high = backbone.network(given)[1]
    torch.testing.assert_close(high, expected, rtol=1e-4, atol=1e-5)


def test_relative_positions_of_another_size_follow_the_table():
    attention = timm.models.beit.Attention(24, num_heads=2, window_size=(3, 3))
    torch.nn.init.normal_(attention.relative_position_bias_table)
    expected = attention._get_rel_pos_bias()
    positions = RelativePositions(attention)
    torch.testing.assert_close(positions(3, 3), expected)
    bias = positions(2, 4)
    assert bias.shape == (1, 2, 9, 9)
    torch.testing.assert_close(bias[0, :, 1, 2], bias[0, :, 2, 3])
    assert not torch.equal(bias[0, :, 1, 2], bias[0, :, 2, 1]) and torch.equal(bias[:, :, 0, 1], bias[:, :, 0, 8])


def test_depth_is_refused():
    with pytest.raises(CrosscoopError, match="all blocks of a plain vision transformer have the same stride"):
        Backbone("test_vit", depth=4)


@pytest.mark.parametrize("transformer", ["test_vit", "test_vit2"])
def test_convolutional_and_transformer_branch_exchange_and_train(transformer):
    network = create_network(["test_resnet", transformer], 5, channels=16)
    network.train()
    image = torch.rand(2, 3, 49, 65)
    logits = network(image)
    assert [each.shape for each in logits] == [(2, 5, 49, 65)] * 2
    (logits[0].square().mean() + logits[1].square().mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    before: list[Tensor] = network(image)
    with torch.no_grad():
        network.branches[1].backbone.network.network.patch_embed.proj.weight.add_(1)
    assert not torch.equal(network(image)[0], before[0]), "an exchange leads from the transformer to the other branch"


SLOW = ("test_vit", "patch14", "eva")  # what is particular about the others is more


@pytest.mark.parametrize(
    "tiny", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS], indirect=True
)
def test_branch_exports_with_dynamic_sizes(tiny):
    network, dynamic = create_network([tiny], 5, "none", channels=16).eval(), torch.export.Dim.DYNAMIC
    sizes = {"image": {0: dynamic, 2: dynamic, 3: dynamic}}
    exportable = Exportable(network, ["network"])
    program = torch.export.export(exportable, (torch.rand(2, 3, 97, 131),), dynamic_shapes=sizes).module()
    for size in ((1, 64, 64), (3, 65, 98), (1, 161, 50)):
        image = torch.rand(size[0], 3, *size[1:])
        for actual, expected in zip(program(image), network(image), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pair_runs_in_onnx_runtime_at_any_size(tiny, tmp_path):
    pytest.importorskip("onnxruntime")
    network = create_network(["test_resnet", tiny], 5, channels=16).eval()
    about = About("", {}, {}, ["top", "bottom"], [], [], None, "", None)
    write_onnx(tmp_path / "pair.onnx", network, about)
    agreed, lines = parity(by_name(network), read_onnx(tmp_path / "pair.onnx")[0])
    assert agreed, lines

"""The network as a whole: invariants, image sizes, precisions, parity with smp, parameters and multiply-adds."""

import itertools
import resource
import time

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from crosscoop.errors import CrosscoopError
from crosscoop.network import DeepLabV3Plus, create_network, precision
from crosscoop.network.fold import fold_batch_norm
from crosscoop.network.layers import BatchNorm2d, ConvNormAct, DepthwiseConv2d, resize, resize_sparsely
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.sync_batchnorm import TimmSyncBatchNorm

SIZES = [(32, 32), (17, 17), (33, 65), (50, 31), (16, 200), (1, 1)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


# -- the pair and its branches


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_unconnected_pair_is_its_branches_bit_for_bit(make_pair, training, separable):
    network, image = make_pair("none", separable=separable).train(training), torch.rand(2, 3, 49, 65)
    assert_equal(network(image), [branch(image) for branch in network.branches])


def test_connected_pair_is_not_its_branches(make_pair):
    network, image = make_pair("cross"), torch.rand(1, 3, 49, 65)
    assert not any(
        torch.equal(own, branch(image)) for own, branch in zip(network(image), network.branches, strict=True)
    )


def test_branches_agree_with_the_figure_step_by_step(make_pair):
    """The paper's figure 4 for C1 and C2, written out with the sums in place."""
    network, image = (
        make_pair({"points": ["connection1", "connection2"]}, branches=["test_resnet"] * 2),
        torch.rand(1, 3, 64, 96),
    )
    top, bottom = network.branches
    (low1, high1), (low2, high2) = top.backbone(image), bottom.backbone(image)
    contexts = [branch.aspp.join([layer(high1 + high2) for layer in branch.aspp.layers]) for branch in (top, bottom)]
    expected = []
    for branch, low in ((top, low1), (bottom, low2)):
        feature = branch.decoder.join(branch.decoder.project(low), contexts[0] + contexts[1])
        expected.append(resize(branch.classifier(branch.decoder.second(feature)), image.shape[-2:]))
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": []}, "expected a list with one backbone per branch"),
        ({"branches": "test_resnet"}, "expected a list with one backbone per branch"),
        ({"branches": [{"backbone": "test_resnet", "deph": 4}]}, r"with the fields \['backbone', 'deph'\]"),
        ({"branches": [{"depth": 4}]}, r"got a branch with the fields \['depth'\]"),
        ({"output_stride": 32}, "got 32, expected 8 or 16"),
        ({"atrous_rates": [6, 12]}, r"got \[6, 12\], expected three rates"),
        ({"branches": [{"backbone": ["test_resnet"] * 2}], "pretrained": [[False]]}, "expected an entry for each"),
        ({"pretrained": [False]}, "got 1 entries for 2 branches"),
    ],
)
def test_wrong_option_is_told(make_pair, options, message):
    with pytest.raises(CrosscoopError, match=message):
        make_pair(**options)


# -- any image, any batch


@pytest.mark.parametrize("size", SIZES)
def test_logits_have_the_size_of_the_image(make_pair, size):
    for logits in make_pair()(torch.rand(2, 3, *size)):
        assert logits.shape == (2, 5, *size) and logits.isfinite().all()


def test_batch_of_one_trains_on_the_running_statistics(make_pair):
    network = make_pair().train()
    pooled = network.branches[0].aspp.layers[-1].conv
    norm, before = pooled[1], {name: value.clone() for name, value in pooled[1].state_dict().items()}
    logits = network(torch.rand(1, 3, 50, 31))
    sum(each.square().mean() for each in logits).backward()
    assert all(each.isfinite().all() for each in logits)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert pooled[0].weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items() if "running" in name)
    network(torch.rand(2, 3, 50, 31))
    assert not torch.equal(norm.running_mean, before["running_mean"])
    assert norm.running_var.isfinite().all() and norm.running_var.min() > 0


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_torchs_where_torchs_works(training):
    ours, theirs = BatchNorm2d(4).train(training), nn.BatchNorm2d(4).train(training)
    batch = torch.randn(3, 4, 2, 2)
    assert torch.equal(ours(batch), theirs(batch))
    assert_equal(list(ours.buffers()), list(theirs.buffers()))


def test_all_void_batch_gives_zero_loss_and_zero_gradients(make_pair):
    network, loss = make_pair().train(), CrossEntropy()
    mask = torch.full((2, 33, 49), 255)
    total = sum(loss(logits, mask) for logits in network(torch.rand(2, 3, 33, 49)))
    total.backward()
    assert total == 0
    assert all((parameter.grad == 0).all() for parameter in network.parameters())


# -- precision, memory format, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(make_pair, dtype):
    network, image, mask = make_pair().train(), torch.rand(2, 3, 33, 49), torch.randint(5, (2, 33, 49))
    with torch.autocast("cpu", dtype):
        logits = network(image)
        total = sum(CrossEntropy()(each, mask) for each in logits)
    total.backward()
    assert logits[0].dtype == dtype and total.dtype == torch.float32 and total.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_autocast_stays_near_full_precision(make_pair):
    network, image = make_pair(fusion="average"), torch.rand(1, 3, 33, 49)
    full = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(image)
    for expected, actual in zip(full, low, strict=True):
        assert (actual.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("fusion", ["add", "concat"])
def test_channels_last_gives_the_same_logits(make_pair, fusion):
    network, image = make_pair(fusion=fusion), torch.rand(2, 3, 33, 49)
    expected = network(image)
    network.to(memory_format=torch.channels_last)
    actual = network(image.contiguous(memory_format=torch.channels_last))
    for pair in zip(actual, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4 * expected[0].abs().max().item())


SHALLOW = {"branches": [{"backbone": name, "depth": 3} for name in ("test_resnet", "test_byobnet")], "output_stride": 8}


def test_compiled_network_trains_as_the_plain_one(make_pair):
    torch._dynamo.reset()
    network, image = make_pair(fusion="concat", **SHALLOW).train(), torch.rand(2, 3, 33, 49)
    parameters = list(network.parameters())
    results = []
    for forward in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        logits = forward(image)
        results.append((logits, torch.autograd.grad(sum(each.square().mean() for each in logits), parameters)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_compiles_once_for_every_size(make_pair):
    torch._dynamo.reset()
    network, counter = make_pair(**SHALLOW), CompileCounter()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    for size in [(33, 49), (64, 80), (50, 131), (96, 65)]:
        image = torch.rand(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), network(image))
    assert counter.frame_count == 1


# -- branches that differ


@pytest.mark.parametrize("fusion", ["add", "concat"])
@pytest.mark.parametrize("branches", [
    ["test_convnext", "test_byobnet"],
    [{"backbone": "test_convnext", "depth": 4}, "test_resnet"],
    [{"backbone": "legacy_xception", "depth": 4}, "test_resnet"],
    [{"backbone": "swin_tiny_patch4_window7_224", "depth": 4}, "test_resnet"],
])  # fmt: skip
def test_branches_of_different_width_and_size_cooperate(make_pair, branches, fusion):
    network = make_pair("cross_c1_c2", fusion, branches=branches)
    image = torch.rand(1, 3, 65, 47)
    (top_low, top_high), (low, high) = [branch.backbone(image) for branch in network.branches]
    assert top_high.shape != high.shape and top_low.shape != low.shape
    for logits in network(image):
        assert logits.shape == (1, 5, 65, 47) and logits.isfinite().all()


# -- synchronised batch norm


@pytest.mark.parametrize("backbone", ["test_byobnet", "test_efficientnet"])
def test_timm_sync_batchnorm_changes_nothing_on_one_process(make_pair, backbone):
    network, image = make_pair(branches=["test_resnet", backbone]), torch.rand(2, 3, 33, 49)
    expected, keys, names = network(image), list(network.state_dict()), [name for name, _ in network.named_parameters()]
    TimmSyncBatchNorm().apply(network)
    assert not any(type(module) in (nn.BatchNorm2d, BatchNorm2d) for module in network.modules())
    assert_equal(network(image), expected)
    assert list(network.state_dict()) == keys and [name for name, _ in network.named_parameters()] == names
    for batch in (1, 2):
        assert all(logits.isfinite().all() for logits in network.train()(torch.rand(batch, 3, 33, 49)))


@pytest.mark.parametrize("backbone", ["test_byobnet", "test_efficientnet"])
def test_timm_sync_batchnorm_trains_as_before_on_one_process(make_pair, backbone):
    network, image = make_pair(branches=["test_resnet", backbone]).train(), torch.rand(2, 3, 33, 49)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    expected, statistics = network(image), [buffer.clone() for buffer in network.buffers()]
    network.load_state_dict(state)
    TimmSyncBatchNorm().apply(network)
    torch.testing.assert_close(network(image), expected)
    torch.testing.assert_close(list(network.buffers()), statistics)


# -- parity with segmentation_models_pytorch


def be_identity(norm: nn.BatchNorm2d) -> None:
    """Make a batch norm in eval mode the identity."""
    norm.running_mean.zero_(), norm.running_var.fill_(1), norm.bias.zero_()
    norm.weight.fill_((1 + norm.eps) ** 0.5)


def copy(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and statistics by their order."""
    for given, taken in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        taken.copy_(given)


@torch.no_grad()
def copy_from_smp(theirs: nn.Module, ours: DeepLabV3Plus, separable: bool) -> None:
    """Copy the weights. smp's decoder has one more layer after ASPP (made an identity there) and one less behind the
    concatenation (made an identity here); it concatenates context and detail in the other order.
    """
    copy(theirs.encoder.model, ours.backbone.network)
    copy(theirs.decoder.aspp[0].convs, ours.aspp.layers)
    copy(theirs.decoder.aspp[0].project, ours.aspp.project)
    copy(theirs.decoder.block1, ours.decoder.project)
    copy(theirs.segmentation_head[0], ours.classifier)

    nn.init.dirac_(theirs.decoder.aspp[1][0].weight, groups=theirs.decoder.aspp[1][0].groups)
    nn.init.dirac_(theirs.decoder.aspp[1][1].weight)
    be_identity(theirs.decoder.aspp[2])
    for convolution in (layer for layer in ours.decoder.second if isinstance(layer, nn.Conv2d)):
        nn.init.dirac_(convolution.weight, groups=convolution.groups)
    be_identity(ours.decoder.second[-2])

    (depthwise, pointwise), norm = theirs.decoder.block2[0], theirs.decoder.block2[1]
    order = torch.arange(depthwise.in_channels).roll(48)
    depthwise, pointwise = depthwise.weight[order], pointwise.weight[:, order]
    if separable:
        ours.decoder.first[0].weight.copy_(depthwise)
        ours.decoder.first[1].weight.copy_(pointwise)
    else:
        ours.decoder.first[0].weight.copy_(pointwise * depthwise.transpose(0, 1))
    copy(norm, ours.decoder.first[-2])


@pytest.mark.parametrize(("separable", "output_stride"), list(itertools.product([True, False], [16, 8])))
def test_logits_equal_smps_with_copied_weights(make_pair, separable, output_stride):
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = make_pair("none", branches=["test_byobnet"], output_stride=output_stride, separable=separable)
    donor = make_pair("none", branches=["test_byobnet"], output_stride=output_stride)  # random in its statistics
    theirs = smp.DeepLabV3Plus(
        "tu-test_byobnet",
        encoder_weights=None,
        encoder_output_stride=output_stride,
        decoder_channels=16,
        decoder_atrous_rates=[rate * 16 // output_stride for rate in (6, 12, 18)],
        decoder_aspp_separable=separable,
        classes=5,
    ).eval()
    copy(donor.branches[0].backbone.network, theirs.encoder.model)
    for upsample in (theirs.decoder.up, theirs.segmentation_head[1]):
        upsample.align_corners = False
    (ours,) = network.branches
    copy_from_smp(theirs, ours, separable)

    image = torch.rand(2, 3, 64, 96)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    expected = theirs((image - mean) / std)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(image), expected, rtol=1e-4, atol=1e-5)


# -- the layers


def test_resize_is_half_pixel_bilinear_and_free_where_the_size_fits():
    feature = torch.tensor([[[[0.0, 1.0]]]])
    assert resize(feature, (1, 2)) is feature
    torch.testing.assert_close(resize(feature, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))


@pytest.mark.parametrize(("height", "width", "step"), [(32, 64, 4), (50, 67, 4), (5, 9, 1), (3, 4, 2)])
def test_sparse_resizing_takes_the_pixels_of_the_full_one(height, width, step):
    feature = torch.randn(2, 3, 5, 9)
    expected = resize(feature, (height, width))[..., step // 2 :: step, step // 2 :: step]
    torch.testing.assert_close(resize_sparsely(feature, (height, width), step), expected)


@pytest.mark.parametrize("rate", [1, 2, 3, 6, 13])
@pytest.mark.parametrize("size", [(12, 12), (5, 13), (1, 1)])
def test_depthwise_convolution_gives_torchs_output_and_gradients_in_both_layouts(rate, size):
    ours = DepthwiseConv2d(4, rate).double()
    torchs = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, groups=4, bias=False).double()
    torchs.load_state_dict(ours.state_dict())
    results = []
    for layer, layout in itertools.product((torchs, ours), (torch.contiguous_format, torch.channels_last)):
        torch.manual_seed(0)
        image = torch.randn(2, 4, *size, dtype=torch.double).to(memory_format=layout).requires_grad_()
        output = layer(image)
        layer.weight.grad = None
        (output * torch.randn(2, 4, *size, dtype=torch.double)).sum().backward()
        results.append((output, image.grad, layer.weight.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel_size", "dilation", "separable"), [(1, 1, False), (3, 6, False), (3, 6, True)])
def test_layer_is_convolution_norm_activation(kernel_size, dilation, separable):
    layer = ConvNormAct(4, 6, kernel_size, dilation, separable)
    output = layer(torch.randn(2, 4, 9, 13))
    assert output.shape == (2, 6, 9, 13) and output.min() == 0
    assert isinstance(layer[-2], nn.BatchNorm2d) and all(convolution.bias is None for convolution in [*layer][:-2])
    assert len(layer) == (4 if separable else 3)
    assert layer[0].groups == (4 if separable else 1)


# -- batch norm folded into convolutions: the same outputs from fewer layers


def count_batch_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separable": True, "fusion": "concat"},
        {"branches": ["test_efficientnet", "resnet18"], "strategy": "none"},
        {"branches": ["tf_efficientnet_lite0", "mobilenetv2_100"]},  # `same` padding as in TensorFlow
    ],
)
def test_folded_network_gives_the_same_outputs(make_pair, options):
    network = make_pair(**options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network.train())
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    assert count_batch_norms(network) > 40 and count_batch_norms(folded) == 0 and not folded.training
    for size in [(2, 3, 64, 64), (1, 3, 33, 71)]:
        image = torch.rand(size)
        with torch.no_grad():
            for expected, logits in zip(network(image), folded(image), strict=True):
                assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Chain(nn.Module):
    """A convolution and a batch norm, used in some way."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), use
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.bias)

    def forward(self, image):
        return self.use(self, image)


def skip(net, image):
    feature = net.conv(image)
    return net.norm(feature) + feature


@pytest.mark.parametrize(
    ("use", "left"),
    [
        (lambda net, image: net.norm(net.conv(image)), 0),
        (lambda net, image: net.norm(net.conv(image).relu()), 1),
        (lambda net, image: net.conv(net.norm(image)), 1),
        (skip, 1),  # the convolution's output goes elsewhere, too
        (lambda net, image: net.conv(net.norm(net.conv(image))), 1),  # the convolution runs twice
        (lambda net, image: net.norm(net.norm(net.conv(image))), 1),  # the batch norm does
        (lambda net, image: torch.cat([net.norm(feature := net.conv(image)), feature], 1), 1),
    ],
)
def test_what_cannot_be_folded_stays(use, left):
    network = Chain(use).eval()
    folded, image = fold_batch_norm(network), torch.rand(1, 3, 8, 8)
    assert count_batch_norms(folded) == left
    assert torch.allclose(folded(image), network(image), atol=1e-5)


# -- bfloat16 where a processor has instructions for it, and a note where a training would emulate it

CPU = torch.device("cpu")


def capabilities(monkeypatch, *names):
    """Make this CPU one with certain instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in names, raising=False)


@pytest.mark.parametrize(
    ("names", "native"),
    [
        ((), False),
        (("avx2", "avx512_f"), False),
        (("avx512_bf16",), True),
        (("amx_tile",), True),
        (("arm_bf16",), True),
    ],
)
def test_native_bfloat16(monkeypatch, names, native):
    capabilities(monkeypatch, *names)
    assert precision.native_bfloat16(CPU) is native and not precision.native_bfloat16(torch.device("meta"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert precision.native_bfloat16(CPU) is native
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert not precision.native_bfloat16(CPU)


@pytest.mark.parametrize(
    ("names", "wanted", "told"),
    [
        *((["avx2"], "bf16-mixed", True), (["avx2"], "bf16-true", True)),
        *((["avx2"], "32-true", False), (["avx512_bf16"], "bf16-mixed", False)),
    ],
)
def test_training_in_emulated_bfloat16_is_noted(monkeypatch, capsys, names, wanted, told):
    capabilities(monkeypatch, *names)
    monkeypatch.setattr(precision, "seconds_of_convolution", lambda dtype: 3.0 if dtype is torch.bfloat16 else 0.25)
    precision.note.cache_clear()
    precision.note_emulated_bfloat16(wanted, CPU)
    said = capsys.readouterr().err
    assert (f"trainer.precision is {wanted}" in said and "12.0 times as long" in said) is told and bool(said) is told


def test_a_convolution_takes_time():
    assert 0 < precision.seconds_of_convolution(torch.float32) < 60


# -- cost

PAIR = ["xception65.tf_in1k", "resnet101.tv_in1k"]


@pytest.mark.parametrize(
    ("branches", "separable", "parameters", "macs"),
    [
        (PAIR[1:], False, 59.3, 92.8),
        (PAIR[1:], True, 45.7, 60.2),
        (PAIR[:1], False, 54.7, 86.6),
        (PAIR[:1], True, 41.1, 53.9),
        (PAIR, False, 114.0, 179.4),
        (PAIR, True, 86.7, 114.1),
        ([{"backbone": PAIR}], False, 97.2, 141.4),
    ],
)
def test_parameters_and_multiply_adds(branches, separable, parameters, macs):
    with torch.device("meta"):
        network = create_network(
            branches, strategy="cross_c1_c2" if len(branches) == 2 else "none", separable=separable
        )
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.rand(1, 3, 513, 513))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(parameters, rel=0.02)
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.02)


@pytest.mark.slow
def test_the_papers_pair_trains_at_full_size():
    network = create_network().train()
    start = time.perf_counter()
    mask = torch.randint(21, (2, 513, 513))
    total = sum(functional.cross_entropy(logits, mask) for logits in network(torch.rand(2, 3, 513, 513)))
    total.backward()
    print(f"{time.perf_counter() - start:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    assert total.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())

"""Batch norm folded into convolutions: the same outputs from fewer layers."""

import pytest
import torch
from torch import nn

from crosscoop.network.fold import fold_batch_norm


def count(network):
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
def test_parity(make_pair, options):
    network = make_pair(**options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network.train())
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    assert count(network) > 40 and count(folded) == 0 and not folded.training
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
    assert count(folded) == left
    assert torch.allclose(folded(image), network(image), atol=1e-5)

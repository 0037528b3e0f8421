"""Branches that walk: the contract, branches of other shapes, and the network that drives them."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import FUSIONS, STRATEGIES, Branch, Point, Strategy, Walk, create_network
from crosscoop.network.layers import resize
from crosscoop.network.strategy import DIRECTIONS

IMAGE = (2, 3, 49, 65)
THREE = ["test_resnet", "test_byobnet", "test_efficientnet"]


class Plain(Branch):
    """A branch of another shape: a classifier on the backbone's output, and one exchange point."""

    def __init__(self, backbone: nn.Module, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.backbone = backbone
        self.narrow = nn.Conv2d(backbone.high_channels, width, 1)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.points = [Point("connection1", "connection1", backbone.high_channels), Point("narrow", "narrow", width)]

    def walk(self, image: Tensor, upsample: bool = True) -> Walk:
        _, high = self.backbone(image)
        high = yield high
        feature = yield self.narrow(high)
        logits = self.classifier(feature)
        yield resize(logits, image.shape[-2:]) if upsample else logits


def twin_forwards(network: nn.Module, image: Tensor) -> list[Tensor]:
    """What two DeepLabV3+ branches compute, told in the plural, with the exchanges between the steps."""

    def exchange(point: str, top: Tensor, bottom: Tensor) -> list[Tensor]:
        if point not in network.exchanges:
            return [top, bottom]
        to_top, to_bottom = network.exchanges[point].receivers
        merged = []
        for receiver, own, received in ((to_top, top, bottom), (to_bottom, bottom, top)):
            if receiver.connections:
                (connection,) = receiver.connections
                sent = received.detach() if connection.detach else received
                own = connection.fusion(own, resize(connection.project(sent), own.shape[-2:]))
            merged.append(own)
        return merged

    branches = network.branches
    lows, highs = zip(*[branch.backbone(image) for branch in branches], strict=True)
    highs = exchange("connection1", *highs)
    layers = [
        exchange(f"aspp{i + 1}", *(branch.aspp.layers[i](high) for branch, high in zip(branches, highs, strict=True)))
        for i in range(5)
    ]
    contexts = [branch.aspp.join(own) for branch, own in zip(branches, zip(*layers, strict=True), strict=True)]
    contexts = exchange("connection2", *contexts)
    details = exchange("decoder1", *(b.decoder.project(low) for b, low in zip(branches, lows, strict=True)))
    joined = [b.decoder.join(*own) for b, own in zip(branches, zip(details, contexts, strict=True), strict=True)]
    features = exchange("decoder2", *joined)
    features = exchange("decoder3", *(b.decoder.second(f) for b, f in zip(branches, features, strict=True)))
    return [resize(b.classifier(f), image.shape[-2:]) for b, f in zip(branches, features, strict=True)]


@pytest.mark.parametrize(("strategy", "fusion"), list(itertools.product(STRATEGIES, FUSIONS)))
def test_walks_in_lock_step_compute_what_the_figure_says_bit_for_bit(make_pair, strategy, fusion):
    network, image = make_pair(strategy, fusion), torch.rand(IMAGE)
    results = []
    for forward in (network, lambda image: twin_forwards(network, image)):
        logits = forward(image)
        loss = sum((i + 1) * each.square().mean() for i, each in enumerate(logits))
        results.append([*logits, *torch.autograd.grad(loss, list(network.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("branch", [{}, {"class_path": f"{__name__}.Plain"}], ids=["deeplabv3plus", "own"])
def test_branch_yields_the_points_that_it_declares_and_then_its_logits(branch):
    (branch,) = create_network([{"backbone": "test_resnet", **branch}], 5, "none", channels=16).eval().branches
    image, seen = torch.rand(IMAGE), []
    walk = branch.walk(image)
    feature = next(walk)
    for point in branch.points:
        seen.append((point.channels, feature.shape[1]))
        feature = walk.send(feature)
    assert all(declared == yielded for declared, yielded in seen)
    assert feature.shape == (2, 5, *IMAGE[2:]) and torch.equal(feature, branch(image))
    assert next(walk, None) is None, "the walk goes on after its logits"
    assert len({point.name for point in branch.points}) == len(branch.points)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_three_branches_reach_those_that_the_direction_names(make_pair, direction, fusion):
    strategy = Strategy(["connection1", "aspp", "decoder"], direction)
    network, image = make_pair(strategy, fusion, branches=THREE), torch.rand(1, *IMAGE[1:])
    with torch.no_grad():
        for sender in range(3):
            before, state = network(image), {k: v.clone() for k, v in network.state_dict().items()}
            for parameter in network.branches[sender].backbone.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            changed = [not torch.equal(*pair) for pair in zip(before, network(image), strict=True)]
            network.load_state_dict(state)
            # directly, or by way of a branch between them
            assert changed == [receiver == sender or strategy.connects(sender, receiver) for receiver in range(3)]


def test_three_branches_train_and_every_parameter_learns(make_pair):
    network = make_pair("cross_c1_c2", "gate", branches=THREE).train()
    sum((logits * torch.randn_like(logits)).mean() for logits in network(torch.rand(IMAGE))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_single_layer_is_an_exchange_point_too(make_pair):
    network = make_pair({"points": ["aspp3", "decoder"]})
    assert list(network.exchanges) == ["aspp3", "decoder1", "decoder2", "decoder3"]


def test_branches_of_other_shapes_exchange_where_both_stop(make_pair):
    own = {"backbone": "test_byobnet", "class_path": f"{__name__}.Plain", "init_args": {"width": 12}}
    network, image = make_pair({"points": ["connection1"]}, branches=["test_resnet", own]), torch.rand(IMAGE)
    top, bottom = network.branches
    (_, high1), (_, high2) = top.backbone(image), bottom.backbone(image)
    to_top, to_bottom = network.exchanges["connection1"]([high1, high2])
    walk = bottom.walk(image)
    next(walk)
    expected = walk.send(walk.send(to_bottom))
    assert bottom.narrow.out_channels == 12
    assert torch.equal(network(image)[1], expected)
    walk = top.walk(image)
    feature = next(walk)
    feature = walk.send(to_top)
    for _ in top.points[1:]:
        feature = walk.send(feature)
    assert torch.equal(network(image)[0], feature)
    unconnected = make_pair("none", branches=["test_resnet", own])
    alone = [branch(image) for branch in unconnected.branches]
    assert all(torch.equal(*pair) for pair in zip(unconnected(image), alone, strict=True))


def test_points_that_not_every_branch_has_are_refused(make_pair):
    own = {"backbone": "test_byobnet", "class_path": f"{__name__}.Plain"}
    with pytest.raises(
        CrosscoopError, match=r"got the points aspp, decoder, expected .* all branches have: connection1"
    ):
        make_pair("cross", branches=["test_resnet", own])


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        ({"class_path": "torch.nn.Identity"}, "expected a subclass of crosscoop.Branch"),
        ({"class_path": f"{__name__}.Plain", "init_args": {"size": 3}}, "unexpected keyword argument 'size'.*width"),
        ({"class_path": "mine.Head"}, "'mine.Head' cannot be imported"),
    ],
)
def test_wrong_branch_is_told(branch, message):
    with pytest.raises(CrosscoopError, match=message):
        create_network([{"backbone": "test_resnet", **branch}], 5, "none")


@pytest.mark.parametrize("names", [(), ("aspp2", "connection2")])
def test_maps_are_kept_as_the_exchange_left_them(make_pair, names):
    network, image = make_pair("cross_c1_c2", "gate"), torch.rand(IMAGE)
    logits, maps = network.forward_maps(image, names)
    assert all(torch.equal(*pair) for pair in zip(logits, network(image), strict=True))
    assert list(maps) == list(names)
    received = []
    for name in names:
        hook = network.exchanges[name].register_forward_hook(lambda module, args, merged: received.append(merged))
        network(image)
        hook.remove()
        assert all(torch.equal(maps[name][i], received[-1][i]) for i in range(2))

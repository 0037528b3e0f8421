"""Connection strategies, fusion operators and the exchange: what flows where."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.network import FUSIONS, STRATEGIES, Branch, Fusion, Point, Strategy, Walk, create_network
from crosscoop.network.exchange import Connection, Exchange
from crosscoop.network.fusion import Add, Average, Concat, CrossStitch, get_fusion
from crosscoop.network.layers import resize
from crosscoop.network.strategy import DIRECTIONS, POINTS, get_strategy

CATALOGUE = list(itertools.product(STRATEGIES, FUSIONS))
EVERY_WAY = {
    **STRATEGIES,
    **{f"{point}-{way}": Strategy([point], way) for point, way in itertools.product(POINTS, DIRECTIONS)},
}
IMAGE = (3, 3, 33, 49)


def reaches(sender: int, strategy: Strategy) -> bool:
    """Whether the strategy leads from branch `sender` into the other one."""
    way = ("top_to_bottom", "bottom_to_top")[sender]
    return bool(strategy.points) and strategy.direction in ("both", way)


def filled(module: nn.Module) -> nn.Module:
    """Every parameter at random."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


# -- the fusion operators


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_keeps_shape_and_hears_both_maps(name):
    fusion = filled(FUSIONS[name](8))
    own, received = torch.randn(2, 2, 8, 5, 7, requires_grad=True).unbind()
    own.retain_grad(), received.retain_grad()
    merged = fusion(own, received)
    assert merged.shape == own.shape
    (merged * torch.randn_like(merged)).sum().backward()
    if name == "channel_exchange":
        assert torch.equal(own.grad != 0, received.grad == 0) and (received.grad != 0).any((0, 2, 3)).sum() == 2
    else:
        assert own.grad.all() and received.grad.all()
    assert all(parameter.grad.any() for parameter in fusion.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_state_round_trips_and_eval_is_deterministic(name):
    fusion, again = filled(FUSIONS[name](8)).eval(), FUSIONS[name](8).eval()
    again.load_state_dict(fusion.state_dict(), strict=True)
    maps = torch.randn(2, 2, 8, 5, 7).unbind()
    assert torch.equal(fusion(*maps), fusion(*maps))
    assert torch.equal(fusion(*maps), again(*maps))


def test_concat_starts_as_the_average():
    own, received = torch.randn(2, 2, 6, 4, 4).unbind()
    torch.testing.assert_close(Concat(6)(own, received), Average(6)(own, received))


def test_cross_stitch_starts_with_little_of_the_received_map():
    own, received = torch.randn(2, 2, 6, 4, 4).unbind()
    torch.testing.assert_close(CrossStitch(6)(own, received), 0.9 * own + 0.1 * received)
    torch.testing.assert_close(CrossStitch(6, start=0.5)(own, received), Average(6)(own, received))


def test_channel_exchange_swaps_a_share_of_the_channels():
    top, bottom = torch.randn(2, 2, 8, 4, 4).unbind()
    first, second = Exchange([8, 8], Strategy(["aspp"]), FUSIONS["channel_exchange"])([top, bottom])
    for merged, own, received in ((first, top, bottom), (second, bottom, top)):
        kept, taken = ((merged == each).all(dim=(0, 2, 3)) for each in (own, received))
        assert torch.equal(kept, ~taken) and taken.sum() == 2
    with pytest.raises(CrosscoopError, match="got share 0"):
        get_fusion({"class_path": "channel_exchange", "init_args": {"share": 0}})(8)


def test_rectify_weighs_channels_and_pixels():
    fusion = filled(FUSIONS["rectify"](8))
    own, received = torch.randn(2, 1, 8, 4, 4).unbind()
    weight = (fusion(own, received) - own) / received
    by_channel = weight - weight[:, :1]  # the pixels' part is the same in all channels
    torch.testing.assert_close(by_channel, by_channel[..., :1, :1].expand_as(by_channel), atol=1e-3, rtol=0)
    assert weight.min() > 0 and weight.max() < 1 and by_channel.any() and weight.std((2, 3)).min() > 0


@pytest.mark.parametrize(
    ("name", "equal"),
    [
        ("add", True),
        ("average", True),
        ("concat", False),
        ("gate", False),
        ("cross_stitch", False),
        ("channel_exchange", False),
        ("rectify", False),
    ],
)
def test_symmetric_operators_leave_one_map_in_both_branches(name, equal):
    exchange = filled(Exchange([6, 6], Strategy(["aspp"]), FUSIONS[name]))
    top, bottom = exchange(torch.randn(2, 1, 6, 4, 4).unbind())
    assert torch.equal(top, bottom) == equal


# -- the exchange


class Twice(Fusion):
    """An asymmetric operator with an argument of its own."""

    def __init__(self, channels: int, factor: float = 2.0) -> None:
        super().__init__(channels)
        self.factor = factor

    def forward(self, own: Tensor, received: Tensor) -> Tensor:
        return own + self.factor * received


def test_exchange_is_simultaneous():
    top, bottom = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 10.0)
    merged = Exchange([4, 4], Strategy(["aspp"]), Twice)([top, bottom])
    assert [float(each.mean()) for each in merged] == [21, 12]
    assert float(top.mean()) == 1 and float(bottom.mean()) == 10, "the exchange changed the maps it was given"


@pytest.mark.parametrize(
    ("direction", "expected"), [("both", [21, 12]), ("top_to_bottom", [1, 12]), ("bottom_to_top", [21, 10])]
)
def test_exchange_follows_its_direction(direction, expected):
    maps = [torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 10.0)]
    merged = Exchange([4, 4], Strategy(["aspp"], direction), Twice)(maps)
    assert [float(each.mean()) for each in merged] == expected


def test_exchange_fits_channels_and_size_of_the_receiver():
    exchange = filled(Exchange([6, 4], Strategy(["connection1"]), Add))
    top, bottom = torch.randn(2, 6, 9, 13), torch.randn(2, 4, 5, 7)
    to_top, to_bottom = exchange([top, bottom])
    weight = exchange.receivers[0].connections[0].project.weight
    received = functional.interpolate(functional.conv2d(bottom, weight), (9, 13), mode="bilinear")
    torch.testing.assert_close(to_top, top + received)
    assert to_bottom.shape == bottom.shape and not torch.equal(to_bottom, bottom)


def test_connection_of_equal_maps_has_no_parameters_of_its_own():
    assert not list(Connection(4, 4, Add, Strategy()).parameters())


@pytest.mark.parametrize(
    ("direction", "expected"),
    [("both", [123, 213, 312]), ("top_to_bottom", [1, 21, 312]), ("bottom_to_top", [123, 23, 3])],
)
def test_three_branches_receive_from_all_that_the_direction_names(direction, expected):
    class Digits(Fusion):
        """Leaves one digit to each sender, in the senders' order."""

        def forward(self, own: Tensor, received: Tensor) -> Tensor:
            return own * 10 + received

    maps = [torch.full((1, 4, 2, 2), value) for value in (1.0, 2.0, 3.0)]
    merged = Exchange([4, 4, 4], Strategy(["aspp"], direction), Digits)(maps)
    assert [float(each.mean()) for each in merged] == expected


def test_detach_stops_gradients_at_the_connection_but_not_in_it():
    connection = filled(Connection(4, 6, Concat, Strategy(detach=True)))
    own = torch.randn(2, 4, 3, 3, requires_grad=True)
    received = torch.randn(2, 6, 3, 3, requires_grad=True)
    connection(own, received).square().sum().backward()
    assert received.grad is None and own.grad.any()
    assert all(parameter.grad.any() for parameter in connection.parameters())


# -- the strategies in a network


@pytest.mark.parametrize("name", STRATEGIES)
def test_points_are_those_of_the_papers_figure(make_pair, name):
    network = make_pair(name)
    points = {"connection1": 1, "aspp": 5, "connection2": 1, "decoder": 3}
    receivers = 1 if name == "one_way" else 2
    for point, number in points.items():
        exchanges = [exchange for key, exchange in network.exchanges.items() if key.startswith(point)]
        operators = [module for exchange in exchanges for module in exchange.modules() if isinstance(module, Fusion)]
        assert len(operators) == (number * receivers if point in STRATEGIES[name].points else 0)


def test_exchanged_maps_are_activated_and_as_wide_as_the_table_says(make_pair):
    seen = []

    class Recorder(Add):
        def forward(self, own: Tensor, received: Tensor) -> Tensor:
            seen.append((own.shape[1], tuple(own.shape[-2:])))
            assert own.min() == 0 and received.min() == 0, "the map was not activated"
            return super().forward(own, received)

    make_pair(Strategy(["aspp", "connection2", "decoder"], "top_to_bottom"), Recorder)(torch.rand(1, 3, 64, 96))
    low, high = (16, 24), (4, 6)
    assert seen == [(16, high)] * 6 + [(48, low), (16, low), (16, low)]


@pytest.mark.parametrize("sender", [0, 1])
@pytest.mark.parametrize("name", EVERY_WAY)
def test_perturbed_backbone_changes_the_other_branch_iff_connected(make_pair, name, sender):
    strategy = EVERY_WAY[name]
    network, image = make_pair(strategy, "concat"), torch.rand(1, *IMAGE[1:])
    with torch.no_grad():
        before = network(image)
        for parameter in network.branches[sender].backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        changed = [not torch.equal(*pair) for pair in zip(before, network(image), strict=True)]
    assert changed[sender]
    assert changed[1 - sender] == reaches(sender, strategy)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("sender", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_flow_back_iff_connected_and_not_detached(make_pair, direction, sender, detach):
    strategy = Strategy(POINTS, direction, detach)
    network = make_pair(strategy)
    network(torch.rand(1, *IMAGE[1:]))[1 - sender].square().mean().backward()
    reached = any(parameter.grad is not None for parameter in network.branches[sender].backbone.parameters())
    assert reached == (reaches(sender, strategy) and not detach)


@pytest.mark.parametrize(("strategy", "fusion"), CATALOGUE)
def test_every_parameter_learns_under(make_pair, strategy, fusion):
    network = make_pair(strategy, fusion).train()
    mask = torch.randint(5, (IMAGE[0], *IMAGE[2:]))
    sum(functional.cross_entropy(logits, mask) for logits in network(torch.rand(IMAGE))).backward()
    idle = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not idle


@pytest.mark.parametrize(("strategy", "fusion"), CATALOGUE)
def test_contract_of_a_network_under(make_pair, strategy, fusion):
    network, again = make_pair(strategy, fusion), make_pair(strategy, fusion)
    image = torch.rand(1, *IMAGE[1:], requires_grad=True)
    logits = network(image)
    assert [each.shape for each in logits] == [(1, 5, *IMAGE[2:])] * 2
    for each in logits:
        (gradient,) = torch.autograd.grad(each.square().sum(), image, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any()
    again.load_state_dict(network.state_dict(), strict=True)
    for repeated in (network(image), again(image)):
        assert all(torch.equal(*pair) for pair in zip(logits, repeated, strict=True))


# -- the user's own, and what is refused

OWN = """
from torch import nn
from crosscoop import Fusion, Strategy

early = Strategy(["connection1"], detach=True)

class Scaled(Fusion):
    def __init__(self, channels, factor=1.0):
        super().__init__(channels)
        self.factor = factor

    def forward(self, own, received):
        return own + self.factor * received
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_exchange.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_exchange"


def test_own_strategy_and_operator_by_import_path(make_pair, own_module):
    fusion = {"class_path": f"{own_module}.Scaled", "init_args": {"factor": 3.0}}
    network = make_pair(f"{own_module}.early", fusion)
    assert [operator.factor for operator in network.modules() if isinstance(operator, Fusion)] == [3, 3]
    assert network.exchanges["connection1"].receivers[0].connections[0].detach


def test_strategy_by_its_fields():
    fields = {"points": ["aspp"], "direction": "bottom_to_top", "detach": True}
    assert get_strategy(fields) == Strategy(["aspp"], "bottom_to_top", True)


def test_catalogue_names_round_trip():
    assert all(get_strategy(name) is strategy for name, strategy in STRATEGIES.items())
    assert all(get_fusion(name) is fusion for name, fusion in FUSIONS.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("crosss", "expected one of none, one_way, cross"),
        ("no_such_file.mine", "cannot be imported"),
        ("crosscoop.network.nothing", "cannot be imported"),
        ("math.pi", "is a float, expected a crosscoop.Strategy"),
        ({"point": ["aspp"]}, r"got fields \['point'\], expected only points, direction, detach, dropout"),
        ({"points": "aspp"}, "expected a list"),
        ({"points": ["aspp"], "direction": "up"}, "expected one of both, top_to_bottom, bottom_to_top"),
    ],
)
def test_wrong_strategy_is_told(given, message):
    with pytest.raises(CrosscoopError, match=message):
        get_strategy(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sum", "expected one of add, average, concat"),
        ({"class_path": "no_such_file.Gate"}, "cannot be imported"),
        ({"init_args": {}}, "expected class_path and, optionally, init_args"),
        ({"start": 0.3}, "got the fields {'start': 0.3}, expected class_path"),
        ({"class_path": "cross_stitch", "start": 0.3}, "expected class_path and, optionally, init_args"),
        ({"class_path": "cross_stitch", "init_arg": {"start": 0.3}}, "expected class_path and, optionally, init_args"),
    ],
)
def test_wrong_fusion_is_told(given, message):
    with pytest.raises(CrosscoopError, match=message):
        get_fusion(given)


def test_one_branch_alone_is_not_connected():
    with pytest.raises(CrosscoopError, match="connects branches at aspp, decoder, but there is only one branch"):
        create_network(["test_efficientnet"], 5, "cross", channels=16)


def test_unknown_point_is_told(make_pair):
    with pytest.raises(
        CrosscoopError, match=r"got the points asp, expected .* connection1, aspp, connection2, decoder"
    ):
        make_pair({"points": ["asp"]})


@pytest.mark.parametrize(
    ("fusion", "complaint"),
    [
        ("torch.nn.Identity", "expected a subclass of crosscoop.Fusion"),
        ("math.pi", "expected a subclass of crosscoop.Fusion"),
        ({"class_path": "concat", "init_args": {"depth": 3}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_what_is_no_operator_is_refused(fusion, complaint):
    with pytest.raises(CrosscoopError, match=complaint):
        get_fusion(fusion)


@pytest.mark.parametrize("fusion", ["add", "average"])
def test_what_is_the_same_for_both_branches_is_computed_once(fusion):
    def own_type(channels):  # another type: computed for each branch
        return type("Own", (FUSIONS[fusion],), {})(channels)

    maps, weight = [torch.randn(2, 4, 5, 6) for _ in range(2)], torch.randn(2, 2, 4, 5, 6)
    results = []
    for operator in (FUSIONS[fusion], own_type):
        leaves = [map.clone().requires_grad_() for map in maps]
        merged = Exchange([4, 4], STRATEGIES["cross"], operator)(leaves)
        sum((map * own).sum() for map, own in zip(merged, weight, strict=True)).backward()
        results.append((merged, [leaf.grad for leaf in leaves]))
    (shared, gradients), (apart, expected) = results
    assert shared[0] is shared[1] and apart[0] is not apart[1]
    assert all(torch.equal(*pair) for pair in zip(shared, apart, strict=True))
    for pair in zip(gradients, expected, strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize(
    ("result", "given"),
    [
        (lambda own, received: torch.cat([own, received], 1), r"\(2, 8, 5, 7\)"),
        (lambda own, received: (own + received).mean((2, 3), keepdim=True), r"\(2, 4, 1, 1\)"),
        (lambda own, received: None, "a NoneType"),
    ],
)
def test_operator_that_changes_the_shape_is_told(result, given):
    class Own(Fusion):
        def forward(self, own, received):
            return result(own, received)

    connection = Connection(4, 4, Own, Strategy())
    with pytest.raises(CrosscoopError, match=rf"network\.fusion: got {given} from Own, expected .*\(2, 4, 5, 7\)"):
        connection(*torch.randn(2, 2, 4, 5, 7))


def test_whole_numbers_serve_as_floats():
    assert get_fusion({"class_path": "cross_stitch", "init_args": {"start": 1}})(4).received.dtype == torch.float32
    assert get_fusion({"class_path": "gate", "init_args": {"reduction": 2}}).keywords == {"reduction": 2}


def test_maps_of_different_sizes_are_not_shared():
    top, bottom = Exchange([4, 4], STRATEGIES["cross"], FUSIONS["add"])(
        [torch.randn(1, 4, 6, 6), torch.randn(1, 4, 5, 5)]
    )
    assert top.shape[-1] == 6 and bottom.shape[-1] == 5


# -- Branches that walk: the contract, branches of other shapes, and the network that drives them

WIDE = (2, 3, 49, 65)
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
    network, image = make_pair(strategy, fusion), torch.rand(WIDE)
    results = []
    for forward in (network, lambda image: twin_forwards(network, image)):
        logits = forward(image)
        loss = sum((i + 1) * each.square().mean() for i, each in enumerate(logits))
        results.append([*logits, *torch.autograd.grad(loss, list(network.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("branch", [{}, {"class_path": f"{__name__}.Plain"}], ids=["deeplabv3plus", "own"])
def test_branch_yields_the_points_that_it_declares_and_then_its_logits(branch):
    (branch,) = create_network([{"backbone": "test_resnet", **branch}], 5, "none", channels=16).eval().branches
    image, seen = torch.rand(WIDE), []
    walk = branch.walk(image)
    feature = next(walk)
    for point in branch.points:
        seen.append((point.channels, feature.shape[1]))
        feature = walk.send(feature)
    assert all(declared == yielded for declared, yielded in seen)
    assert feature.shape == (2, 5, *WIDE[2:]) and torch.equal(feature, branch(image))
    assert next(walk, None) is None, "the walk goes on after its logits"
    assert len({point.name for point in branch.points}) == len(branch.points)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_three_branches_reach_those_that_the_direction_names(make_pair, direction, fusion):
    strategy = Strategy(["connection1", "aspp", "decoder"], direction)
    network, image = make_pair(strategy, fusion, branches=THREE), torch.rand(1, *WIDE[1:])
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
    sum((logits * torch.randn_like(logits)).mean() for logits in network(torch.rand(WIDE))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_single_layer_is_an_exchange_point_too(make_pair):
    network = make_pair({"points": ["aspp3", "decoder"]})
    assert list(network.exchanges) == ["aspp3", "decoder1", "decoder2", "decoder3"]


def test_branches_of_other_shapes_exchange_where_both_stop(make_pair):
    own = {"backbone": "test_byobnet", "class_path": f"{__name__}.Plain", "init_args": {"width": 12}}
    network, image = make_pair({"points": ["connection1"]}, branches=["test_resnet", own]), torch.rand(WIDE)
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
    network, image = make_pair("cross_c1_c2", "gate"), torch.rand(WIDE)
    logits, maps = network.forward_maps(image, names)
    assert all(torch.equal(*pair) for pair in zip(logits, network(image), strict=True))
    assert list(maps) == list(names)
    received = []
    for name in names:
        hook = network.exchanges[name].register_forward_hook(lambda module, args, merged: received.append(merged))
        network(image)
        hook.remove()
        assert all(torch.equal(maps[name][i], received[-1][i]) for i in range(2))

"""Connection strategies, fusion operators and the exchange: what flows where."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.network import FUSIONS, STRATEGIES, Fusion, Strategy, create_network
from crosscoop.network.exchange import Connection, Exchange
from crosscoop.network.fusion import Add, Average, Concat, CrossStitch, get_fusion
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


@pytest.mark.parametrize(
    ("name", "equal"), [("add", True), ("average", True), ("concat", False), ("gate", False), ("cross_stitch", False)]
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
        ({"init_args": {}}, "expected one of add, average, concat"),
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

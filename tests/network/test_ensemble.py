"""Ensembles, cascades and branches alone."""

import json

import numpy as np
import pytest
import torch
from tiny import assert_equal, crosscoop, fit

import crosscoop as package
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.combine import fit as fit_ensemble
from crosscoop.network import Strategy, create_network
from crosscoop.network.cooperative import Cascade, confidence
from crosscoop.network.ensemble import ENSEMBLES, MostConfident, Weighted


def shares(logits):
    return torch.stack(logits).double().softmax(2)


@pytest.fixture
def logits():
    return list(3 * torch.randn(3, 2, 4, 5, 6))


def test_ensembles_are_what_they_are_called(logits):
    sums = {name: make(3, 4)(logits) for name, make in ENSEMBLES.items()}
    assert torch.equal(sums["sum"], logits[0] + logits[1] + logits[2])
    probabilities = shares(logits)
    torch.testing.assert_close(sums["mean_probability"].double().softmax(1), probabilities.mean(0))
    assert torch.equal(sums["weighted"].argmax(1), sums["sum"].argmax(1))  # equal weights, until they are fitted
    surest = probabilities.amax(2).argmax(0)
    for branch in range(3):
        chosen = sums["most_confident"].exp().double().movedim(1, -1)[surest == branch]
        torch.testing.assert_close(chosen, probabilities[branch].movedim(1, -1)[surest == branch])


def test_fitted_ensembles_lower_the_loss_and_find_a_known_answer():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4000, 3, generator=generator)
    labels = torch.distributions.Categorical(logits=truth).sample()
    confused = torch.randn(4000, 3, generator=generator)
    weighted, confident = Weighted(2, 3), MostConfident(2, 3)
    before, after = fit_ensemble(weighted, torch.stack([truth, confused]), labels)
    assert after < before and (weighted.weight[0] - 1).abs().max() < 0.2 and weighted.weight[1].abs().max() < 0.2
    fit_ensemble(confident, torch.stack([4 * truth, truth / 2]), labels)
    torch.testing.assert_close(confident.temperature, torch.tensor([4.0, 0.5]), rtol=0.1, atol=0)
    assert not any(parameter.requires_grad for parameter in [*weighted.parameters(), *confident.parameters()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "best"}, "network.ensemble: .*expected one of sum, mean_probability, weighted, most_confident"),
        ({"cascade": {"branch": "top"}}, "network.cascade: got .*confidence"),
        ({"cascade": {"branch": "left", "confidence": 0.5}}, "network.cascade: got .*top, bottom"),
        ({"strategy": Strategy(["aspp"], dropout=0.5), "branches": ["test_resnet"]}, "only one branch"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(CrosscoopError, match=message):
        create_network(**{"branches": ["test_resnet", "test_byobnet"], "num_classes": 3, "channels": 8, **options})


# -- alone


def test_a_branch_alone_is_its_own_walk(make_pair):
    network, image = make_pair("cross_c1_c2"), torch.rand(2, 3, 32, 48)
    alone = network.alone(1)
    assert torch.equal(alone(image)[0], network.branches[1](image)) and list(alone.outputs(image)) == ["network"]
    assert not torch.equal(alone(image)[0], network(image)[1])
    assert not alone.training and network.train().alone(0).training


def test_which_branches_learn_alone(make_pair):
    assert [make_pair("none").learns_alone(i) for i in (0, 1)] == [True, True]
    assert [make_pair("one_way").learns_alone(i) for i in (0, 1)] == [True, False]
    assert [make_pair(Strategy(["aspp"], dropout=0.3)).learns_alone(i) for i in (0, 1)] == [True, True]


def test_connection_dropout_silences_connections_per_image_in_training_alone(make_pair):
    network, image = make_pair(Strategy(["connection2"], dropout=0.5)), torch.rand(1, 3, 32, 48).expand(64, -1, -1, -1)
    for module in network.modules():  # statistics of the batch and other dropout would differ between the passes
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout)):
            module.training = False
    connected, exchange = network(image[:1])[0], network.exchanges["connection2"]
    alone = network.branches[0](image[:1])
    exchange.train()
    outputs = network(image)[0]
    silent = torch.tensor([torch.allclose(each, alone[0], atol=1e-4) for each in outputs])
    heard = torch.tensor([torch.allclose(each, connected[0], atol=1e-4) for each in outputs])
    assert (silent ^ heard).all() and 16 < silent.sum() < 48
    exchange.eval()
    torch.testing.assert_close(network(image[:2])[0], connected.expand(2, -1, -1, -1))


def test_full_connection_dropout_trains_each_branch_as_if_alone(make_pair):
    network, image = make_pair(Strategy(["aspp", "decoder"], dropout=1.0)).train(), torch.rand(2, 3, 32, 48)
    twin = make_pair("none").train()
    twin.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("exchanges")})
    for own, other in zip(network(image), twin(image), strict=True):
        assert torch.equal(own, other)


# -- cascades


@pytest.mark.parametrize("strategy", ["none", Strategy(["aspp"], dropout=0.5)])
def test_a_cascade_sends_on_the_images_of_which_its_branch_is_unsure(make_pair, strategy):
    network, images = make_pair(strategy), torch.rand(4, 3, 32, 48) * torch.arange(1, 5).view(4, 1, 1, 1)
    first = network.branches[1](images)
    sure = confidence(first)
    network.cascade = Cascade(1, float(sure.median()) + 1e-6)
    answer, sent = network.cascaded(images)
    assert torch.equal(sent, sure < network.cascade.confidence) and 0 < sent.sum() < 4
    torch.testing.assert_close(answer[~sent], first[~sent])
    torch.testing.assert_close(answer[sent], network.outputs(images[sent])["ensemble"])
    for threshold, share in ((0.0, 0), (1.1, 4)):
        network.cascade = Cascade(1, threshold)
        assert network.cascaded(images)[1].sum() == share


def test_a_cascade_runs_only_what_it_needs(make_pair):
    network, calls = make_pair("none"), []
    for i, branch in enumerate(network.branches):
        branch.backbone.register_forward_hook(lambda *_, i=i: calls.append(i))
    network.cascade = Cascade(1, 0.0)
    network.cascaded(torch.rand(1, 3, 32, 48))
    network.cascade = Cascade(1, 1.1)
    network.cascaded(torch.rand(1, 3, 32, 48))
    assert calls == [1, 1, 0]


# -- the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pair and a single network; look, but do not touch."""
    folder = tmp_path_factory.mktemp("join")
    fit(folder / "pair", "--network.strategy none")
    fit(folder / "single", "--network.strategy none --network.branches=[test_resnet] --network.channels 8")
    fit(folder / "connected", "--network.strategy cross")
    return folder


def test_joined_networks_are_tested_and_predict_as_their_parts(runs, tmp_path, capsys):
    crosscoop("join", runs / "single", runs / "pair", "--ensemble mean_probability --output", tmp_path / "joined")
    assert "branch0, branch1, branch2" in capsys.readouterr().out
    network = package.load(tmp_path / "joined" / "best.ckpt", device="cpu").network
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        parts = [
            each
            for run in ("single", "pair")
            for each in package.load(runs / run / "best.ckpt", device="cpu").network(image)
        ]
        for own, part in zip(network(image), parts, strict=True):
            assert torch.equal(own, part)
    for run in (tmp_path / "joined", runs / "pair", runs / "single"):
        crosscoop("test", "--run", run, "--pictures.num_images 0")
    joined, pair, single = (
        json.loads((run / "metrics.json").read_text())["outputs"]
        for run in (tmp_path / "joined", runs / "pair", runs / "single")
    )
    assert joined["branch0"] == single["network"]
    assert [joined["branch1"], joined["branch2"]] == [pair["top"], pair["bottom"]]


@pytest.mark.parametrize("ensemble", ["weighted", "most_confident"])
def test_what_is_fitted_lies_in_the_checkpoint_with_its_split(runs, tmp_path, capsys, ensemble):
    options = (f"--ensemble {ensemble} --cascade-loss 0.2 --output", tmp_path / "run")
    crosscoop("join", runs / "pair", *options)
    said = capsys.readouterr().out
    assert "answers first" in said and "on 3 images" in said
    content = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert content["crosscoop"]["fitted"]["split"] == "val" and content["crosscoop"]["fitted"]["num_images"] == 3
    fitted = [value for key, value in content["state_dict"].items() if "ensemble" in key]
    assert fitted and (fitted[0] != 1).any()
    crosscoop("test", "--run", tmp_path / "run", "--pictures.num_images 0")
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["miou"] == record["outputs"]["cascade"]["miou"] and 0 <= record["cascade"]["sent"] <= 1
    assert "Cascade: " in capsys.readouterr().out
    crosscoop("predict", "--run", tmp_path / "run")
    assert f"{100 * record['cascade']['sent']:.1f} % sent on" in capsys.readouterr().out
    crosscoop("export", tmp_path / "run" / "best.ckpt", "--format safetensors")
    assert_equal(
        package.load(tmp_path / "run" / "best.safetensors").network.state_dict(),
        package.load(tmp_path / "run" / "best.ckpt").network.state_dict(),
    )
    crosscoop("export", tmp_path / "run" / "best.ckpt", "--format safetensors --branch top")
    assert_equal(
        package.load(tmp_path / "run" / "best.top.safetensors").network.state_dict(),
        package.load(runs / "pair" / "best.ckpt", branch="top").network.state_dict(),
    )


def test_one_branch_of_a_pair_is_fitted(runs, tmp_path):
    crosscoop("join", runs / "pair", "--branch bottom --ensemble weighted --output", tmp_path / "run")
    fitted, alone = (
        package.load(tmp_path / "run" / "best.ckpt"),
        package.load(runs / "pair" / "best.ckpt", branch="bottom"),
    )
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        (logits,), (plain,) = fitted.network.outputs(image).values(), alone.network(image)
    scaled = plain.log_softmax(1) * fitted.network.ensemble.weight[0, :, None, None]
    torch.testing.assert_close(logits, scaled + fitted.network.ensemble.bias[:, None, None])
    assert (logits.argmax(1) != plain.argmax(1)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pair", "expected --output FOLDER"),
        ("pair --output pair", "which exists, expected a new folder"),
        ("pair --output new --cascade-loss 1 --cascade-cost 1", "got both --cascade-loss and --cascade-cost"),
        ("pair single --branch top --output new", "--branch: got top of 2 runs, expected a single run"),
        ("pair --branch left --output new", "--branch: got left, expected one of top, bottom"),
        ("connected --branch top --output new", "got the branch top, which was trained with connections"),
        ("pair --ensemble best --output new", "expected one of sum, mean_probability, weighted, most_confident"),
        ("pair --output new --cascade-cost 0.01", "the share of the cheapest branch"),
        ("single --output new --cascade-cost 0.5", "got a single branch"),
        ("pair connected --output new", "got the branch top, which was trained with connections"),
        ("nothing --output new", "no checkpoint nothing"),
    ],
)
def test_what_cannot_be_joined_is_told(runs, monkeypatch, capsys, options, message):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit, match="2"):
        crosscoop("join", options)
    assert message in " ".join(capsys.readouterr().err.split()) and not (runs / "new").exists()


# -- one branch of a checkpoint


@pytest.mark.parametrize(("run", "format"), [("pair", "safetensors"), ("connected", "onnx")])
def test_one_branch_of_a_checkpoint_holds_and_costs_one_network(runs, tmp_path, capsys, run, format):
    path = runs / run / "best.ckpt"
    whole, alone = package.load(path, device="cpu"), package.load(path, device="cpu", branch="bottom")
    assert ("was trained with connections" in capsys.readouterr().err) == (run == "connected")
    assert_equal(alone.network.branches[0].state_dict(), whole.network.branches[1].state_dict())
    assert len(alone.network.branches) == 1
    image = np.random.default_rng(0).integers(256, size=(32, 48, 3), dtype=np.uint8)
    labels = alone(image).labels
    exported = tmp_path / f"bottom.{format}"
    crosscoop("export", path, f"--branch bottom --format {format} --output", exported)
    assert np.array_equal(package.load(exported)(image).labels, labels)
    crosscoop("push", path, "--branch bottom --data-licence MIT --folder", tmp_path / "hub")
    assert np.array_equal(package.load(f"hf-hub:{tmp_path / 'hub'}")(image).labels, labels)
    if format == "onnx":
        with pytest.raises(CrosscoopError, match="can only run as a whole"):
            package.load(exported, branch="bottom")
    with pytest.raises(CrosscoopError, match="got 'left', expected one of top, bottom"):
        package.load(path, branch="left")

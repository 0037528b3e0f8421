"""Starting from networks trained before: what is taken, left out and newly drawn, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_ranks
from tiny import Recorder, assert_equal, crosscoop, fit, load

from crosscoop.checkpoints.about import About
from crosscoop.data import Streets
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import write_safetensors
from crosscoop.export.hub import HubModel
from crosscoop.network import create_network
from crosscoop.network.outputs import output_names
from crosscoop.training.weights import network_to_train, start_from

CLASSES = list(Streets().class_names)
PAIR = ["test_resnet", "test_byobnet"]


def make(branches: Any = PAIR, strategy: Any = "cross_c1_c2", classes: Any = CLASSES, **options: Any):
    """A small network, random in every value, and its description."""
    options = {"branches": branches, "strategy": strategy, "channels": 16, "num_classes": len(classes), **options}
    network = create_network(**options)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    outputs = output_names(len(branches))
    normalisation = {
        name: branch.backbone.normalisation for name, branch in zip(outputs, network.branches, strict=False)
    }
    palette = [(i, i, i) for i in range(len(classes))]
    return network, About("0", options, normalisation, outputs, list(classes), palette, None, "Streets", None)


@pytest.fixture
def store(tmp_path):
    """Writes a network and returns the file's path, and the weights in it."""

    def write(*args: Any, **options: Any) -> tuple[str, dict[str, torch.Tensor]]:
        network, about = make(*args, **options)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        write_safetensors(path, network, about)
        return str(path), network.state_dict()

    return write


def branch_of(weights: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    prefix = f"branches.{index}."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


# -- what is taken


@pytest.mark.parametrize("changed", [
    {},
    {"strategy": {"points": ["connection1", "aspp", "connection2", "decoder"], "dropout": 0.3}},
    {"output_stride": 8, "atrous_rates": [1, 2, 3]},
])  # fmt: skip
@pytest.mark.parametrize("fusion", ["add", "gate"])
def test_same_network_and_classes_take_everything(store, fusion, changed):
    path, source = store(fusion=fusion)
    network, _ = make(fusion=fusion, **changed)
    _, taken = start_from(network, CLASSES, path)
    assert_equal(network.state_dict(), source)
    assert taken.startswith("  taken: top: backbone, aspp, decoder, classifier; bottom: backbone, aspp, decoder, class")


@pytest.mark.parametrize("other", [["a", "b", "c"], [f"other {name}" for name in CLASSES]])
@pytest.mark.parametrize("source_ensemble", ["sum", "weighted"])
def test_other_classes_keep_their_new_classifiers(store, other, source_ensemble):
    path, source = store(ensemble=source_ensemble)
    network, _ = make(classes=other)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    lines = start_from(network, other, path)
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if ".classifier." in key else source[key]), key
    parts = "top: classifier; bottom: classifier"
    ensemble = "" if source_ensemble == "sum" else "; ensemble: weight, bias"
    assert lines[2:] == [f"  left out: {parts}{ensemble}", f"  newly drawn: {parts}"]


def test_pair_starts_from_two_single_networks(store):
    sources = [store([name], "none") for name in PAIR]
    network, _ = make(fusion="gate")
    lines = start_from(network, CLASSES, [path for path, _ in sources])
    for i, (_, source) in enumerate(sources):
        assert_equal(branch_of(network.state_dict(), i), branch_of(source, 0))
    assert lines[-1].startswith("  newly drawn: exchange: connection1, aspp1, ") and "top" not in lines[-1]


def test_null_leaves_a_branch_new(store):
    path, source = store([PAIR[1]], "none")
    network, _ = make()
    before = branch_of({key: value.clone() for key, value in network.state_dict().items()}, 0)
    lines = start_from(network, CLASSES, [None, path])
    assert_equal(branch_of(network.state_dict(), 0), before)
    assert_equal(branch_of(network.state_dict(), 1), branch_of(source, 0))
    assert "newly drawn: top: backbone, aspp, decoder, classifier" in lines[-1]


@pytest.mark.parametrize(
    ("pair", "index", "fields"),
    [(PAIR, 1, {}), (PAIR, 0, {"branch": "top"}), (["test_resnet"] * 2, 1, {"branch": "bottom"})],
)
def test_single_network_starts_from_a_branch_of_a_pair(store, pair, index, fields):
    path, source = store(pair)
    network, _ = make([pair[index]], "none")
    lines = start_from(network, CLASSES, {"source": path, **fields})
    assert_equal(branch_of(network.state_dict(), 0), branch_of(source, index))
    other = "top" if index else "bottom"
    assert lines[2].startswith(f"  left out: {other}: backbone, aspp, decoder, classifier") and len(lines) == 3


def test_repository_serves_as_well(tmp_path):
    source, about = make()
    model = HubModel(about.__dict__)
    model.network.load_state_dict(source.state_dict())
    model.save_pretrained(tmp_path)
    network, _ = make()
    start_from(network, CLASSES, f"hf-hub:{tmp_path}")
    assert_equal(network.state_dict(), source.state_dict())


# -- what is refused, or taken in parts on request


@pytest.mark.parametrize(
    ("changed", "difference", "taken"),
    [
        ({"branches": ["test_resnet", "test_efficientnet"]},
         "backbone of bottom: got test_byobnet, expected test_efficientnet", "top: backbone, aspp"),
        ({"strategy": "cross"}, "connection1, connection2: got bottom to top by Gate, .*, expected no exchange",
         "exchange: aspp1"),
        ({"strategy": "one_way"}, "aspp1.*: got bottom to top by Gate, .*, expected top to bottom by", "bottom: b"),
        ({"fusion": "add"}, "by Gate, expected bottom to top by Add", "top: backbone"),
        ({"channels": 8}, r"branches.0.aspp.layers.0.0.weight.*: got \(16, .*, expected \(8, ", "top: backbone"),
        ({"separable": True}, r"branches.0.aspp.layers.1.1.weight.*: got \(16,\), exp", "top: backbone, aspp ("),
    ],
)  # fmt: skip
def test_another_network_is_refused_with_what_differs_or_taken_in_parts(store, changed, difference, taken):
    path, source = store(fusion="gate")
    network, _ = make(**{"fusion": "gate", **changed})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CrosscoopError, match=rf"(?s){path} does not fit .*partial: true.*{difference}") as error:
        start_from(network, CLASSES, path)
    assert str(error.value).count("\n") < 11
    assert_equal(network.state_dict(), before)
    lines = start_from(network, CLASSES, {"source": path, "partial": True})
    assert taken in lines[1]
    for key, value in network.state_dict().items():
        fits = key in source and source[key].shape == value.shape
        assert torch.equal(value, source[key] if fits else before[key]), key


@pytest.mark.parametrize(
    ("branches", "weights", "message"),
    [
        (PAIR, "{single}", "gives 1 of 2 branches; expected a list with one source per branch"),
        (PAIR, {"source": "{pair}", "branch": "top"}, "gives 1 of 2 branches"),
        (PAIR, ["{single}"], "got 1 entries for 2 branches"),
        (PAIR, [{"of": "{single}"}, None], "expected a run, a file or hf-hub:NAME, or the fields source"),
        (["test_resnet"], {"source": "{pair}", "branch": "left"}, "got branch 'left' of .*, expected top, bottom"),
        (["test_resnet"], "{twins}", r"top, bottom, of which 2 match test_resnet; .*branch: top"),
        (["test_efficientnet"], "{pair}", "of which none match test_efficientnet"),
        (["test_resnet"], "nothing.ckpt", "network.weights: got nothing.ckpt, which does not exist"),
    ],
)
def test_wrong_sources_are_told(store, branches, weights, message):
    paths = {"single": store(["test_resnet"], "none")[0], "pair": store()[0], "twins": store(["test_resnet"] * 2)[0]}
    network, _ = make(branches, "none")

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(**paths)
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return [fill(each) for each in value] if isinstance(value, list) else value

    with pytest.raises(CrosscoopError, match=message):
        start_from(network, CLASSES, fill(weights))


# -- from the command line


def start(rank: int, path: str) -> None:
    torch.manual_seed(0)
    options = {"branches": PAIR, "num_classes": 3, "channels": 16}
    network = network_to_train(["a", "b", "c"], path, **options)
    print("sum", sum(value.double().sum().item() for value in network.state_dict().values()))


def test_all_ranks_start_alike_and_the_first_one_says_so(store, tmp_path):
    path, _ = store()
    assert in_ranks(tmp_path, 2, start, path) == [0, 0]
    first, second = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert first[0].startswith("network.weights: ") and first[-1].startswith("sum ") and second == first[-1:]


def test_run_starts_from_a_run_and_needs_it_no_more(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Path("first"))
    source = load(Path("first/best.ckpt"))["state_dict"]
    capsys.readouterr()
    fit(Path("second"), "--network.weights first --trainer.callbacks+=tiny.Recorder")
    assert "network.weights: first\n  taken: top: backbone, aspp, decoder, classifier" in capsys.readouterr().out
    assert_equal(Recorder.latest.first, source)
    assert Recorder.latest.learning_rates[0] == [0.007, 0.007], "the schedule starts from the beginning"
    shutil.rmtree("first")
    fit(Path("second"), "--resume --network.weights first --trainer.max_epochs 2")
    assert "network.weights" not in capsys.readouterr().out
    Path("elsewhere").mkdir()
    shutil.copy("second/best.ckpt", "elsewhere")
    crosscoop("test", "--ckpt_path elsewhere/best.ckpt --trainer.accelerator cpu --trainer.enable_progress_bar false")
    crosscoop("export", "--ckpt-path second/best.ckpt --format safetensors --output elsewhere/pair.safetensors")
    with pytest.raises(SystemExit):
        crosscoop("fit", "--config second/config.yaml --run third")
    assert "network.weights: got first, which does not exist" in capsys.readouterr().err

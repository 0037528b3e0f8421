"""`crosscoop export`: what other programs get is what the checkpoint says."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from functools import cache

import huggingface_hub.hub_mixin
import numpy as np
import onnx
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from tiny import crosscoop

import crosscoop as package
from crosscoop.checkpoints.about import About
from crosscoop.commands import push
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.export import hub, prepare
from crosscoop.export.formats import FORMATS, write_onnx, write_safetensors
from crosscoop.export.parity import SIZES, parity, random_image
from crosscoop.export.read import read_network
from crosscoop.network.cooperative import by_name
from crosscoop.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, whose top branch has two backbones; look, but do not touch."""
    folder = tmp_path_factory.mktemp("export") / "run"
    branches = "[{backbone: [test_resnet, test_byobnet]}, test_byobnet]"
    tiny.fit(folder, "--data.resize [32,64]", f"--network.branches '{branches}'")
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A file of each format, written by the command."""
    folder = tmp_path_factory.mktemp("exported")
    for name, format in FORMATS.items():
        crosscoop("export", run / "best.ckpt", f"--format {name} --output", folder / f"best{format.suffix}")
    return {name: folder / f"best{format.suffix}" for name, format in FORMATS.items()}


@pytest.fixture(scope="module")
def loaded(exported):
    """What each file holds, ready to run."""
    return {name: format.read(exported[name])[0].eval() for name, format in FORMATS.items()}


@cache
def program_of(path):
    """An exported program and the texts beside it."""
    strings = dict.fromkeys(About.__dataclass_fields__, "")
    return torch.export.load(path, extra_files=strings), strings


@pytest.fixture
def refused(capsys):
    """Runs an export that fails; gives the exit code, and what was printed."""

    def refused(*options):
        with pytest.raises(SystemExit) as end:
            crosscoop("export", *options)
        return end.value.code, "".join(capsys.readouterr())

    return refused


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 32, 32), (2, 33, 65), (5, 17, 100), (1, 129, 64)])
def test_parity_at_any_batch_and_size(run, loaded, format, size):
    network, image = read_network(run / "best.ckpt")[0].eval(), torch.rand(size[0], 3, *size[1:])
    with torch.no_grad():
        expected, outputs = network.outputs(image), by_name(loaded[format])(image)
    assert list(outputs) == ["top", "bottom", "ensemble"]
    for name, logits in outputs.items():
        assert torch.allclose(logits, expected[name], atol=1e-4)


def strings_of(path):
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata()
    return program_of(path)[1]


@pytest.mark.parametrize("format", FORMATS)
def test_metadata(run, exported, format):
    strings = strings_of(exported[format])
    about = {key: json.loads(strings[key]) for key in About.__dataclass_fields__}
    assert about["class_names"] == list(tiny.STREETS.class_names)
    assert [tuple(color) for color in about["palette"]] == list(tiny.STREETS.palette)
    assert about["version"] == package.__version__ and about["outputs"] == ["top", "bottom", "ensemble"]
    assert about["network"]["strategy"] == "cross_c1_c2" and about["network"]["num_classes"] == 12
    backbones = [branch.backbone for branch in read_network(run / "best.ckpt")[0].branches]
    parts = {"top": backbones[0].backbones, "bottom": backbones[1:]}
    assert {name: len(each) for name, each in about["normalisation"].items()} == {"top": 2, "bottom": 1}
    for name, given in about["normalisation"].items():
        for statistics, backbone in zip(given, parts[name], strict=True):
            for key in ("mean", "std"):
                assert np.allclose(statistics[key], getattr(backbone, key).flatten())
    assert about["resize"] == [32, 64] and about["dataset"] == "Streets"
    assert about["figures"] == json.loads((run / "metrics.json").read_text())
    assert about["figures"]["protocol"]["evaluation"] == "whole images resized to 32 x 64, but masks at their own size"


def test_figures_of_another_epoch_are_not_claimed(run, tmp_path):
    checkpoint = tiny.load(run / "best.ckpt")
    torch.save(checkpoint, tmp_path / "copy.ckpt")
    assert (
        read_network(tmp_path / "copy.ckpt")[1].figures["miou"] == checkpoint["callbacks"]["RunFolder"]["best"]["miou"]
    )
    torch.save({**checkpoint, "epoch": 7}, tmp_path / "copy.ckpt")
    assert read_network(tmp_path / "copy.ckpt")[1].figures is None


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_batch_norm_is_folded(exported, format):
    if format == "onnx":
        operations = [node.op_type for node in onnx.load(exported[format]).graph.node]
    else:
        operations = [str(node.target) for node in program_of(exported[format])[0].graph.nodes]
    assert sum("conv" in operation.lower() for operation in operations) > 40
    assert not [operation for operation in operations if "norm" in operation.lower()]


@pytest.mark.parametrize(
    ("format", "inference"),
    [
        ("onnx", {}),
        ("onnx", {"window": (24, 40)}),
        ("onnx", {"scales": [0.75, 1.5], "flip": True}),
        ("onnx", {"window": (24, 24), "flip": True}),
        ("safetensors", {}),
        ("safetensors", {"window": (24, 24), "flip": True}),
    ],
)
def test_prediction(run, exported, format, inference):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for own_size in (False, True):
        if not (own_size or inference or format == "safetensors"):
            continue  # resized, whole, full-size logits: see the coarse logits below
        expected = package.load(run / "best.ckpt", Inference(**inference), own_size=own_size)
        loaded = package.load(exported[format], Inference(**inference), own_size=own_size)
        assert loaded.describe() == expected.describe()
        assert (loaded.class_names, loaded.palette) == (expected.class_names, expected.palette)
        assert_alike(expected(image), loaded(image))


def assert_alike(first, second):
    """Two predictions, up to rounding."""
    assert np.allclose(first.probabilities, second.probabilities, atol=1e-4)
    for name, labels in second.branch_labels.items():
        assert np.mean(labels == first.branch_labels[name]) > 0.999


def test_predict_runs_onnx(run, exported, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i, sample in enumerate(tiny.STREETS.samples("test")):
        Image.fromarray(sample.image()).save(tmp_path / f"photos/{i}.png")
    for name, checkpoint in (("eager", run / "best.ckpt"), ("onnx", exported["onnx"])):
        options = f"--save labels,comparison --inference.flip true --output '{tmp_path / name}'"
        crosscoop("predict", "--ckpt_path", checkpoint, "--images", tmp_path / "photos", options)
    assert "3 written" in capsys.readouterr().out
    for i in range(3):
        first, second = (np.array(Image.open(tmp_path / name / f"labels/{i}.png")) for name in ("eager", "onnx"))
        assert np.mean(first == second) > 0.999


def test_chosen_outputs_and_coarse_logits(run, exported, tmp_path, capsys):
    """Here from a .safetensors file, which is as good as a checkpoint."""
    options = "--outputs [ensemble,top] --coarse --format torch_export"
    crosscoop("export", shutil.copy(exported["safetensors"], tmp_path / "net.safetensors"), options)
    assert str(tmp_path / "net.pt2") in capsys.readouterr().out
    program, about = FORMATS["torch_export"].read(tmp_path / "net.pt2")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    expected = package.load(run / "best.ckpt")(image)
    coarse = Predictor(program, about.class_names, about.palette, resize=about.resize)(image)
    assert list(coarse.branch_labels) == ["top", "ensemble"] and coarse.logits.shape == (12, 8, 16)  # of 32 x 64
    assert_alike(expected, coarse)
    twice = package.load(exported["onnx"])(image)  # from 8 x 16 to 32 x 64 to 50 x 70
    assert np.mean(expected.labels == twice.labels) > 0.9


def test_a_difference_is_found(run, refused, tmp_path, monkeypatch):
    """The file of an export that differs never appears, and an earlier one stays."""

    def write(path, network, about):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.branches[1].classifier.bias[3] += 0.1
        write_safetensors(path, network, about)

    earlier = tmp_path / "best.safetensors"
    earlier.write_text("earlier")
    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], write=write))
    code, said = refused(run / "best.ckpt", "--format safetensors --output", earlier)
    assert code == 1 and "differs from" in said and "largest difference between probabilities" in said
    assert list(tmp_path.iterdir()) == [earlier] and earlier.read_text() == "earlier"


@pytest.mark.parametrize("wrong", [float("nan"), 0.1, 1.0])
def test_parity_fails(wrong):
    def network(image):
        return {"top": image, "bottom": image.flip(1)}

    assert parity(network, lambda image: {"top": image.clone()})[0]
    agreed, lines = parity(network, lambda image: {"top": image, "bottom": image.flip(1) * wrong})
    assert agreed == (wrong == 1) and len(lines) == len(SIZES)
    assert parity(network, lambda image: {"bottom": image})[0] is False


def test_random_images_are_images():
    image = random_image(2, 40, 30)
    assert image.shape == (2, 3, 40, 30) and 0 <= image.min() < 0.1 and 0.9 < image.max() <= 1
    assert torch.equal(image, random_image(2, 40, 30))


@pytest.mark.parametrize("kernel", [3, 5, (3, 7)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_same_padding(kernel, stride, dilation):
    for layer in (
        Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=2),
        MaxPool2dSame(kernel, stride),
        AvgPool2dSame(2, 1),
    ):
        constant = prepare.constant_padding(copy.deepcopy(layer))
        assert not isinstance(constant, prepare.SAME)
        for size in [(16, 16), (17, 16), (16, 23), (1, 5), (7, 1)]:
            feature = torch.rand(2, 4, *size) - 2
            assert torch.allclose(constant(feature), layer(feature), atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        MaxPool2dSame(3, 1, dilation=2),
        Conv2dSame(4, 6, 1, 2),
        Conv2dSame(4, 6, 2, 2),
        Conv2dSame(4, 6, 5, 3),
        AvgPool2dSame(3, 2),
    ],
)
def test_padding_that_cannot_be_constant_stays(layer):
    assert prepare.constant_padding(layer) is layer


def test_same_padding_is_constant_in_an_export(make_pair):
    network = make_pair(branches=["tf_efficientnet_lite0", "test_resnet"])
    exportable = prepare.Exportable(network, ["bottom", "ensemble"])
    layers = [module for module in network.modules() if isinstance(module, prepare.SAME)]
    mirrored = [module for module in exportable.modules() if isinstance(module, prepare.Mirrored)]
    assert len(layers) >= 4 and len(mirrored) == 4
    image = torch.rand(1, 3, 65, 98)
    with torch.no_grad():
        expected, got = network.outputs(image), exportable(image)
    for name, logits in zip(("bottom", "ensemble"), got, strict=True):
        assert torch.allclose(logits, expected[name], atol=1e-4 * float(expected[name].abs().max()))


def test_wrong_options(run, exported, refused, tmp_path):
    for options, said in {
        (): "got neither, expected either a checkpoint or --run FOLDER",
        (run / "best.ckpt", "--run x"): "got both, expected either a checkpoint or --run FOLDER",
        ("nowhere.ckpt",): "no checkpoint nowhere.ckpt",
        (run / "best.ckpt", "--format tflite"): "'onnx', 'torch_export', 'safetensors'",
        (run / "best.ckpt", "--outputs [left]"): "outputs: got ['left'], expected some of top, bottom, ensemble",
        (run / "best.ckpt", "--outputs []"): "expected some of top",
        (run / "best.ckpt", "--format safetensors --outputs [top]"): "contains the complete network",
        (run / "best.ckpt", "--format safetensors --coarse"): "contains the complete network",
        (run / "best.ckpt", "--output net.pb"): "expected another file, *.onnx",
        (exported["onnx"], "--output net.onnx"): "expected a checkpoint or a .safetensors file",
        (exported["safetensors"], "--format safetensors"): "expected another file",
    }.items():
        code, message = refused(*options)
        assert code == 2 and said in message, message


def test_a_file_that_may_run_code_is_not_read(exported):
    with pytest.raises(CrosscoopError, match="may run code when it is read"):
        package.load(exported["torch_export"])


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_files_of_others(suffix, tmp_path):
    path = tmp_path / f"other{suffix}"
    path.write_text("something else")
    with pytest.raises(CrosscoopError, match=f"other{suffix}: cannot be read .*, expected an? {suffix} file of"):
        package.load(path)
    with pytest.raises(CrosscoopError, match="no checkpoint"):
        package.load(tmp_path / f"nowhere{suffix}")


def test_an_onnx_file_without_description(exported, tmp_path):
    model = onnx.load(exported["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(CrosscoopError, match=r"bare\.onnx: got no description of its classes"):
        package.load(tmp_path / "bare.onnx")


def test_missing_packages(exported, make_pair, tmp_path, monkeypatch):
    about = read_network(exported["safetensors"])[1]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(CrosscoopError, match=r"needs onnxruntime.*pip install 'crosscoop\[onnx\]'"):
        package.load(exported["onnx"])
    with pytest.raises(CrosscoopError, match=r"needs onnxscript.*pip install 'crosscoop\[onnx\]'"):
        write_onnx(tmp_path / "x.onnx", make_pair(), about)


def test_too_large_an_image(exported, monkeypatch):
    predictor = package.load(exported["onnx"])

    class Full:
        get_inputs = predictor.network.session.get_inputs

        def run(self, *_):
            raise type("Fail", (Exception,), {})("Failed to allocate memory for requested buffer of size 99")

    monkeypatch.setattr(predictor.network, "session", Full())
    with pytest.raises(CrosscoopError, match="expected one that fits into the memory"):
        predictor(np.zeros((8, 8, 3), np.uint8))


# -- the Hugging Face Hub, without any network: folders, and an API that only takes notes


@pytest.fixture(scope="module")
def folder(run):
    """What would be uploaded."""
    crosscoop("push", run / "best.ckpt", "--folder", run.parent / "folder")
    return run.parent / "folder"


def test_round_trip(run, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    expected, loaded = package.load(run / "best.ckpt"), package.load(f"hf-hub:{folder}")
    tiny.assert_equal(dict(expected.network.state_dict()), dict(loaded.network.state_dict()))
    assert (loaded.class_names, loaded.palette) == (expected.class_names, expected.palette)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(expected(image).probabilities, loaded(image).probabilities)
    assert json.loads((folder / "config.json").read_text())["about"]["network"]["strategy"] == "cross_c1_c2"
    assert str(run) not in (folder / "config.json").read_text()


def test_predict_takes_a_repository(run, folder, tmp_path):
    options = ("--config", run / "config.yaml", "--data.dataset.num_test 1", "--output", tmp_path / "out")
    crosscoop("predict", "--ckpt-path", f"hf-hub:{folder}", *options)
    assert len(list((tmp_path / "out/labels").rglob("*.png"))) == 1
    assert json.loads((tmp_path / "out/predict.json").read_text())["checkpoint"] == f"hf-hub:{folder}"


def test_card(run, folder):
    card, figures = (folder / "README.md").read_text(), json.loads((run / "metrics.json").read_text())
    assert f"{100 * figures['outputs']['top']['miou']:.2f}" in card and "| **mIoU** |" in card
    assert "Streets val, 3 images" in card and "whole images resized to 32 x 64" in card
    assert ", ".join(tiny.STREETS.class_names) in card and "generated by crosscoop, MIT" in card
    assert "Ikedo, Ryota" in card and 'crosscoop.load("hf-hub:' in card and "library_name: crosscoop" in card


def test_upload(run, monkeypatch, capsys):
    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            calls["repo"] = (repo_id, private)
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, repo_id, **options):
            calls["card"] = (folder_path / "README.md").read_text()
            calls["weights"] = load_file(folder_path / "model.safetensors")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    crosscoop("push", run / "best.ckpt", "--repo me/streets --private")
    assert calls["repo"] == ("me/streets", True) and calls["token"] is None  # the Hub's own log-in
    assert 'crosscoop.load("hf-hub:me/streets")' in calls["card"]
    assert len(calls["weights"]) == len(package.load(run / "best.ckpt").network.state_dict())
    assert "https://hub/me/streets" in capsys.readouterr().out


def test_what_the_hub_refuses(run, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(hub.HubModel, "push_to_hub", refuse)
    for options, said in {
        "--repo me/x": "could not be written (401 Unauthorized). Log in with `hf auth login`",
        "": "expected either --repo USER/NAME",
        f"--repo me/x --folder '{run / 'x'}'": "expected either --repo USER/NAME",
        f"--folder '{run}'": "which exists",
    }.items():
        with pytest.raises(SystemExit) as end:
            crosscoop("push", run / "best.ckpt", options)
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_licences_of_unknown_data(run):
    about = push.model_of(run / "best.ckpt").about
    own = type(about)(**{**vars(about), "dataset": "Folder", "figures": None})
    with pytest.raises(CrosscoopError, match="data_licence: got none for Folder"):
        hub.card_fields(own, "me/x", None)
    fields = hub.card_fields(own, "me/x", "CC0")
    assert fields["licence"] == "CC0" and fields["figures"] == "Not measured."


def test_what_is_no_model(folder, tmp_path):
    with pytest.raises(CrosscoopError, match="cannot be loaded"):
        package.load(f"hf-hub:{tmp_path}")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["about"]["network"]["fusion"] = "concat"  # has weights that the file lacks
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CrosscoopError, match=r"(?s)cannot be loaded.*Missing key"):
        package.load(f"hf-hub:{tmp_path}")

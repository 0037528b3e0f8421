"""A branch of several summed backbones, after its training: all that reads a checkpoint takes it."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import crosscoop

import crosscoop as package
from crosscoop.export.read import read_network

MEANS = [[0.5, 0.5, 0.5], [0.485, 0.456, 0.406]]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run; look, but do not touch."""
    folder = tmp_path_factory.mktemp("summed") / "run"
    tiny.fit(folder, "--network.branches '[{backbone: [test_resnet, test_byobnet]}, test_byobnet]'")
    return folder


def test_the_normalisation_of_every_backbone_is_known(run):
    about = read_network(run / "best.ckpt")[1]
    means = {name: [each["mean"] for each in entries] for name, entries in about.normalisation.items()}
    assert means == {"top": MEANS, "bottom": MEANS[1:]}


def test_predict_test_and_report(run, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "photos/a.png")
    crosscoop("predict", "--run", run, "--images", tmp_path / "photos", "--output", tmp_path / "out")
    expected = package.load(run / "best.ckpt")(IMAGE).labels
    assert np.array_equal(np.array(Image.open(tmp_path / "out/labels/a.png")), expected)
    crosscoop("test", "--run", run)
    crosscoop("report", run, "--output", tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_export(run, tmp_path, format):
    path = tmp_path / f"net.{format}"
    crosscoop("export", run / "best.ckpt", f"--format {format} --output", path)
    expected, loaded = package.load(run / "best.ckpt"), package.load(path)
    assert np.allclose(loaded(IMAGE).probabilities, expected(IMAGE).probabilities, atol=1e-4)


def test_push(run, tmp_path):
    crosscoop("push", run / "best.ckpt", "--folder", tmp_path / "folder")
    about = json.loads((tmp_path / "folder/config.json").read_text())["about"]
    assert [each["mean"] for each in about["normalisation"]["top"]] == MEANS
    expected, loaded = package.load(run / "best.ckpt"), package.load(f"hf-hub:{tmp_path / 'folder'}")
    assert np.array_equal(expected(IMAGE).probabilities, loaded(IMAGE).probabilities)
    assert "test_resnet + test_byobnet" in (tmp_path / "folder/README.md").read_text()

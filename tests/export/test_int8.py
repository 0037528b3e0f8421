"""`crosscoop export --int8`: a smaller file that still sees the same."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tiny
from PIL import Image
from tiny import crosscoop

import crosscoop as package
from crosscoop.commands import export as command
from crosscoop.commands.export import calibration_images
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import FORMATS
from crosscoop.export.int8 import CALIBRATION_IMAGES, compare, spread, to_table


def quick(patch, run):
    """Exports without torch's exporter: the float file is there already."""
    ready = replace(FORMATS["onnx"], write=lambda path, *_: shutil.copyfile(run / "best.onnx", path))
    patch.setitem(FORMATS, "onnx", ready)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with a float and an int8 file; look, but do not touch."""
    folder = tmp_path_factory.mktemp("int8") / "run"
    tiny.fit(folder, "--network.branches [test_resnet] --network.strategy none --trainer.max_epochs 3")
    crosscoop("export", folder / "best.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        crosscoop("export", folder / "best.ckpt", "--int8")
    return folder


@pytest.fixture
def quickly(run, monkeypatch):
    quick(monkeypatch, run)


def test_the_file_is_int8(run):
    model = onnx.load(run / "best.int8.onnx")
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inputs = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    channels = [len(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if t.name.endswith("weight_scale")]
    assert sum(weights.get(name) == onnx.TensorProto.INT8 for name in inputs) > 10
    assert channels and min(channels) > 1  # a scale for each channel
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["class_names"] == list(tiny.STREETS.class_names)
    assert about["figures"] is None  # which were measured in float
    assert (run / "best.int8.onnx").stat().st_size < 0.6 * (run / "best.onnx").stat().st_size


def test_the_first_convolution_stays_float(run):
    nodes = onnx.load(run / "best.int8.onnx").graph.node
    whence = {name: node.op_type for node in nodes for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    quantized = [whence.get(node.input[0]) == "DequantizeLinear" for node in convolutions]
    assert not quantized[0] and all(quantized[1:]) and len(quantized) > 10


def test_it_predicts(run):
    predictors = [package.load(run / name) for name in ("best.onnx", "best.int8.onnx")]
    images = [sample.image() for sample in tiny.STREETS.samples("test")]
    labels = [np.stack([predictor(image).labels for image in images]) for predictor in predictors]
    assert 0.9 < np.mean(labels[0] == labels[1]) < 1
    image = np.random.default_rng(0).integers(0, 256, (47, 91, 3), np.uint8)
    assert predictors[1](image).labels.shape == (47, 91)


def test_figures_of_both(run):
    images = calibration_images(run / "best.ckpt", None, None)
    assert len(images.calibration) == 4 and len(images.comparison) == 3
    assert images.protocol == "Streets test, 3 images, whole images at their own size"
    first, second = compare([run / "best.onnx", run / "best.int8.onnx"], images.comparison, tiny.STREETS.class_names)
    predictor, counts = package.load(run / "best.int8.onnx"), np.zeros((12, 12), np.int64)
    for sample in tiny.STREETS.samples("test"):
        counts += tiny.count(predictor(sample.image()).labels, sample.mask(), 12)
    assert np.array_equal(second.evaluator.compute()["network"].counts[:, :12].numpy(), counts)
    assert set(first.equal) == {1} and 0.9 < np.mean(second.equal) < 1 and len(second.seconds) == 3
    table = to_table({"float": first, "int8": second}, [2**20, 2**19], "the protocol")
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["float", "int8"] and cells[1] == ["1.0", "0.5"] and cells[3][0] == "100.00"
    assert cells[4][1] == f"{100 * tiny.miou(counts):.2f}" and str(table.caption).startswith("the protocol")


def test_a_folder_of_images(run, quickly, tmp_path, capsys):
    for i, sample in enumerate(tiny.STREETS.samples("train")):
        Image.fromarray(sample.image()).save(tmp_path / f"{i}.png")
    images = calibration_images(run / "best.ckpt", str(tmp_path), [16, 32])
    assert [item["image"].shape for item in images.comparison] == [(3, 16, 32)] * 4
    crosscoop("export", run / "best.ckpt", "--int8 --output", tmp_path / "x.onnx", "--calibration", tmp_path)
    said = capsys.readouterr().out
    assert "images without labels" in " ".join(said.split()) and "-" in said.split("int8")[1]
    assert package.load(tmp_path / "x.onnx")


def test_calibration_images_are_from_all_over(run):
    many = calibration_images(run / "best.ckpt", None, None).comparison
    many.samples = list(many.samples) * 40
    assert len(spread(many)) == CALIBRATION_IMAGES and spread(many).samples[-1] is many.samples[-1]


def test_labels_that_change_are_refused(run, quickly, tmp_path, monkeypatch, capsys):
    whole = command.quantize

    def broken(source, path, images, metadata):
        whole(source, path, images, metadata)
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("weight_quantized"):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(command, "quantize", broken)
    with pytest.raises(SystemExit) as end:
        crosscoop("export", run / "best.ckpt", "--int8 --output", tmp_path / "x.onnx")
    assert end.value.code == 1 and "nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_wrong_options(run, tmp_path, capsys):
    for options, said in {
        "--int8 --format torch_export": "expected --format onnx",
        "--calibration photos": "expected --int8 as well",
    }.items():
        with pytest.raises(SystemExit) as end:
            crosscoop("export", run / "best.ckpt", options)
        assert end.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(CrosscoopError, match="got no image in"):
        calibration_images(run / "best.ckpt", str(tmp_path), None)
    with pytest.raises(CrosscoopError, match="expected a folder of images"):
        calibration_images(run / "best.safetensors", None, None)

"""A trained network in Python: `crosscoop.load`, and what it says about one image."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

import crosscoop
from crosscoop import Predictor, create_network
from crosscoop.data.dataset import VOID, colormap
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.prediction.pictures import outlined, overlay

MINE = """
import timm
import torch
from crosscoop import Fusion

class Gate(Fusion):
    def __init__(self, channels, start=-2.0):
        super().__init__(channels)
        self.weight = torch.nn.Parameter(torch.full((channels, 1, 1), start))

    def forward(self, own, received):
        return own + self.weight.sigmoid() * received

@timm.models.register_model
def slim(pretrained=False, **options):
    return timm.create_model("test_resnet", pretrained=pretrained, **options)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A trained checkpoint; look, but do not touch."""
    run = tmp_path_factory.mktemp("predictor") / "run"
    tiny.fit(run)
    return run / "best.ckpt"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return crosscoop.load(checkpoint)


@pytest.fixture
def image():
    return tiny.STREETS.samples("test")[0].image()


@pytest.fixture
def changed(checkpoint, tmp_path):
    """Writes a checkpoint with other content."""

    def write(change):
        content = tiny.load(checkpoint)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def by_hand(network, image, **options):
    """The branches' logits, from the network itself."""
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] / 255, **options)


def assert_same(first, second):
    """Two predictions, bit for bit."""
    assert np.array_equal(first.image, second.image) and np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.probabilities, second.probabilities)


def test_outputs_are_those_of_the_network(predictor, image):
    prediction = predictor(image)
    top, bottom = by_hand(predictor.network, image)
    assert list(prediction.branch_labels) == ["top", "bottom", "ensemble"]
    assert torch.equal(torch.from_numpy(prediction.labels).long(), (top + bottom)[0].argmax(0))
    assert torch.equal(torch.from_numpy(prediction.branch_labels["top"]).long(), top[0].argmax(0))
    assert torch.equal(torch.from_numpy(prediction.branch_labels["bottom"]).long(), bottom[0].argmax(0))
    assert np.array_equal(prediction.labels, prediction.branch_labels["ensemble"])
    assert np.array_equal(prediction.disagreement, top[0].argmax(0) != bottom[0].argmax(0))
    assert prediction.labels.shape == (32, 64) and prediction.labels.dtype == np.uint8
    assert prediction.probabilities.shape == (12, 32, 64) and prediction.probabilities.dtype == np.float32
    assert np.allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(prediction.probabilities.argmax(0), prediction.labels)
    assert (prediction.class_names, prediction.palette) == (list(tiny.STREETS.class_names), list(tiny.STREETS.palette))


def test_every_kind_of_input_gives_the_same(predictor, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    fixed = image.copy()
    fixed.flags.writeable = False
    strided = np.repeat(image, 2, axis=1)[:, ::2]
    for same in (path, str(path), Image.fromarray(image), tensor, tensor / 255, tensor.double() / 255, fixed, strided):
        assert_same(predictor(same), predictor(image))


def test_the_prediction_keeps_its_image(predictor, image):
    before = image.copy()
    prediction = predictor(image)
    image[:] = 0
    assert np.array_equal(prediction.image, before)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_pil(predictor, image, mode):
    converted = Image.fromarray(image).convert(mode)
    assert_same(predictor(converted), predictor(np.array(converted.convert("RGB"))))


def test_grey_and_16_bit_images(predictor, image):
    grey = image[..., 0]
    expected = predictor(np.stack([grey] * 3, axis=-1))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for same in (grey, torch.from_numpy(grey), torch.from_numpy(grey) / 255, Image.fromarray(grey), deep):
        assert_same(predictor(same), expected)


def test_pil_images_are_turned_upright(predictor, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    lying.getexif().update(exif)
    assert_same(predictor(lying), predictor(image))
    assert lying.size == (32, 64)  # the caller's stays as it was


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 65)])
def test_every_size(predictor, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    prediction = predictor(pixels)
    assert prediction.labels.shape == size and prediction.probabilities.shape == (12, *size)
    assert prediction.draw().width >= size[1] and prediction.compare().width >= 5 * size[1]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(3, 4, 4).long(),
    ],
)
def test_other_input_is_refused(predictor, wrong):
    with pytest.raises(CrosscoopError, match=r"got an image of shape .* and type .*, expected \(H, W, 3\) uint8"):
        predictor(wrong)


def test_overlay_and_legend(predictor, image):
    prediction = predictor(image)
    drawn = np.array(prediction.draw())
    mixed = (image + np.array(predictor.palette)[prediction.labels]) / 2
    assert np.abs(drawn[:32, :64] - mixed).max() <= 0.5
    assert np.array_equal(np.array(prediction.draw(alpha=0))[:32, :64], image)
    legend = {tuple(color) for color in drawn[32:].reshape(-1, 3).tolist()}
    seen = {predictor.palette[index] for index in np.unique(prediction.labels)}
    absent = {color for color in predictor.palette if color not in seen and len(set(color)) > 1}  # text is grey
    assert seen <= legend and not absent & legend


def test_overlays_leave_the_background_as_it_is(image):
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[8:16, 8:16], labels[20:, 30:] = 1, VOID
    drawn = overlay(image, labels, ["Background", "crack"], [(0, 0, 0), (200, 0, 0)])
    changed = (drawn != image).any(2)
    assert not changed[labels != 1].any() and changed[labels == 1].mean() > 0.9
    edges = (outlined(image, labels, [(0, 0, 0), (200, 0, 0)]) != image).any(2)
    assert edges[7:9, 7:17].mean() > 0.9 and not edges[11:13, 11:13].any() and not edges[:4].any()


def test_comparison(predictor, image):
    prediction = predictor(np.tile(image, (4, 8, 1)))
    compared = np.array(prediction.compare())
    height, width = prediction.labels.shape
    top = next(y for y in range(100) if np.array_equal(compared[y : y + height, :width], prediction.image))
    places = np.linspace(0, compared.shape[1] - width, 5).astype(int)
    _, *outputs, difference = (compared[top : top + height, x : x + width] for x in places)
    for panel, labels in zip(outputs, prediction.branch_labels.values(), strict=True):
        assert np.array_equal(panel, np.array(predictor.palette)[labels])
    assert np.array_equal((difference == (230, 0, 40)).all(-1), prediction.disagreement)


def test_large_images_are_compared_in_a_picture_of_bearable_size(predictor, image):
    prediction = predictor(np.tile(image, (1, 20, 1)))
    assert prediction.compare().width < 5 * 1100


def test_one_branch(tmp_path, image):
    tiny.fit(tmp_path, "--network.branches [test_resnet] --network.strategy none")
    predictor = crosscoop.load(tmp_path / "best.ckpt")
    prediction = predictor(image)
    (logits,) = by_hand(predictor.network, image)
    assert torch.equal(torch.from_numpy(prediction.labels).long(), logits[0].argmax(0))
    assert list(prediction.branch_labels) == ["network"] and not prediction.disagreement.any()
    assert prediction.compare().width < 5 * 64  # the image and one output


def test_three_branches(image):
    network = create_network(["test_resnet"] * 3, 5, strategy="none", channels=16).train()
    predictor = Predictor(network, list("abcde"), list(colormap(5)), device="cpu")
    assert not network.training
    labels = predictor(image).branch_labels
    first, second, third = (labels[f"branch{i}"] for i in range(3))
    assert np.array_equal(predictor(image).disagreement, (first != second) | (first != third))


def test_any_module_that_gives_logits_is_a_network(image):
    class Red(nn.Module):  # without parameters and branches, as an exported network
        def forward(self, image):
            return [torch.cat([image[:, :1], 1 - image[:, :1]], 1)]

    prediction = Predictor(Red(), ["red", "other"], [(255, 0, 0), (0, 0, 0)])(image)
    assert np.array_equal(prediction.labels, image[..., 0] / np.float32(255) < 0.5)


def test_inference_is_applied(checkpoint, predictor, image):
    mirrored = crosscoop.load(checkpoint, Inference(flip=True))(image)
    both = [predictor(image).probabilities, predictor(image[:, ::-1]).probabilities[..., ::-1]]
    assert np.allclose(mirrored.probabilities, np.mean(both, axis=0), atol=1e-5)
    assert "with flip" in crosscoop.load(checkpoint, Inference(flip=True)).describe()


def test_the_size_in_training_is_the_size_in_prediction(changed, image):
    path = changed(lambda content: content["crosscoop"]["config"]["data"].update(resize=[16, 32]))
    small, own = crosscoop.load(path), crosscoop.load(path, own_size=True)
    assert "resized to 16 x 32" in small.describe() and "own size" in own.describe()
    tile = np.repeat(np.repeat(image[::2, ::2], 2, axis=0), 2, axis=1)  # halved, it is image[::2, ::2] again
    logits = sum(by_hand(small.network, image[::2, ::2], upsample=False))
    expected = nn.functional.interpolate(logits, size=(32, 64), mode="bilinear")[0]
    assert torch.equal(torch.from_numpy(small(tile).labels).long(), expected.argmax(0))
    assert torch.equal(torch.from_numpy(own(tile).labels).long(), sum(by_hand(own.network, tile))[0].argmax(0))


def test_own_backbones_and_fusions_are_found_again(changed, image, tmp_path, monkeypatch):
    (tmp_path / "mine_predictor.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    fusion = {"class_path": "mine_predictor.Gate", "init_args": {"start": 0.5}}
    options = {"branches": ["mine_predictor:slim", "test_byobnet"], "fusion": fusion, "channels": 8}
    network = create_network(**options, num_classes=12).eval()

    def change(content):
        content["crosscoop"]["config"]["network"] = options
        content["state_dict"] = {f"network.{key}": value for key, value in network.state_dict().items()}

    predictor = crosscoop.load(changed(change))
    assert all(
        torch.equal(a, b) for a, b in zip(by_hand(predictor.network, image), by_hand(network, image), strict=True)
    )

    path = changed(lambda content: content["crosscoop"]["config"]["network"].update(fusion="nowhere.Gate"))
    with pytest.raises(CrosscoopError, match=r"nowhere\.Gate"):
        crosscoop.load(path)


@pytest.mark.parametrize("options", [{"channels": 8}, {"branches": ["test_byobnet", "test_resnet"]}])
def test_weights_that_do_not_fit(changed, options):
    path = changed(lambda content: content["crosscoop"]["config"]["network"].update(options))
    with pytest.raises(CrosscoopError, match="its weights do not fit the network") as caught:
        crosscoop.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CrosscoopError, match="no checkpoint"):
        crosscoop.load(tmp_path / "best.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    (tmp_path / "empty.ckpt").touch()
    for name in ("other", "text", "empty"):
        with pytest.raises(CrosscoopError, match="is not a checkpoint that `crosscoop fit` wrote"):
            crosscoop.load(tmp_path / f"{name}.ckpt")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_devices_that_are_not_there(checkpoint, device):
    with pytest.raises(CrosscoopError, match=f"device: got '{device}', expected"):
        crosscoop.load(checkpoint, device=device)


def test_too_large_an_image(predictor, image, monkeypatch):
    def fail(message):
        def forward(batch, upsample):
            raise RuntimeError(message)

        monkeypatch.setattr(predictor.network, "forward", forward)

    fail("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(CrosscoopError, match=r"32 x 64 pixels, expected one that fits into the memory of cpu.*window"):
        predictor(image)
    fail("something else")
    with pytest.raises(RuntimeError, match="something else"):
        predictor(image)


def test_help_needs_no_torch_and_the_package_is_light_to_import():
    heavy = ("pytorch_lightning", "torchmetrics", "albumentations", "matplotlib")
    code = f"""
import sys; from crosscoop.cli import main; main(['--help']); print('torch' in sys.modules)
import crosscoop; crosscoop.load; print([name for name in {heavy} if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage: crosscoop" in output and output.endswith("False\n[]\n")


@pytest.mark.parametrize(
    ("options", "unbuffered"),
    [("--version", ""), ("--version", "1"), ("--help", ""), ("--help", "1"), ("check-data --help", "")],
)
def test_nobody_reads_the_output(options, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has enough
    command = [sys.executable, "-m", "crosscoop", *options.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(writer)
    assert not process.stderr and process.returncode in (0, 141)  # argparse asks for no more than to try


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fast_is_nearly_the_same(checkpoint, predictor, image, monkeypatch, dtype):
    monkeypatch.setattr("crosscoop.prediction.predictor.native_bfloat16", lambda device: dtype == "bfloat16")
    fast, seen = crosscoop.load(checkpoint, fast=True), set()
    fast.network.branches[0].classifier.register_forward_hook(lambda *args: seen.add(str(args[-1].dtype)))
    assert fast.describe() == predictor.describe() + f", fast ({dtype})"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.network.modules())
    expected, prediction = predictor(image), fast(image)
    assert seen == {f"torch.{dtype}"} and not np.array_equal(prediction.probabilities, expected.probabilities)
    assert np.allclose(prediction.probabilities, expected.probabilities, atol=0.02 if dtype == "bfloat16" else 1e-5)
    assert (prediction.labels == expected.labels).mean() > 0.9


def test_only_networks_of_checkpoints_can_be_made_fast():
    with pytest.raises(CrosscoopError, match="fast: got a Identity, expected the network of a checkpoint"):
        Predictor(nn.Identity(), ["a"], [(0, 0, 0)], fast=True)

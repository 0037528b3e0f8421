"""The evaluation protocols: windows, scales, mirror images."""

import pytest
import torch
from tiny import crosscoop, fit
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference


def pointwise(image):
    """A network that sees single pixels: no protocol of windows or mirror images may change what it says."""
    return {"top": image * 3 - 1, "ensemble": image.flip(1) * 2}


def positional(image):
    """A network whose answer depends on the place in what it is shown."""
    rows = torch.linspace(-1, 1, image.shape[-2]).view(-1, 1)
    columns = torch.linspace(-1, 1, image.shape[-1])
    return {"ensemble": image * (rows + 2 * columns)}


@pytest.mark.parametrize("size", [(17, 23), (64, 64), (40, 100), (7, 9)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_windows_cover_every_pixel_with_what_the_network_says_there(size, overlap):
    image, seen = torch.rand(2, 3, *size), []
    outputs = Inference(window=(16, 24), overlap=overlap)(
        lambda view: seen.append(view.shape) or pointwise(view), image
    )
    for name, logits in pointwise(image).items():
        torch.testing.assert_close(outputs[name], logits)
    assert all(shape[-2] <= 16 and shape[-1] <= 24 for shape in seen)


def test_overlapping_windows_average_their_logits():
    image = torch.ones(1, 1, 4, 6)
    logits = Inference(window=(4, 4), overlap=0.5)(positional, image)["ensemble"]
    once = positional(torch.ones(1, 1, 4, 4))["ensemble"]
    expected = torch.zeros(1, 1, 4, 6)
    expected[..., :4] += once
    expected[..., 2:] += once
    torch.testing.assert_close(logits, expected / torch.tensor([1, 1, 2, 2, 1, 1]))


def test_a_window_as_large_as_the_image_is_the_image():
    image = torch.rand(1, 3, 20, 30)
    for window in ((20, 30), (50, 50)):
        assert torch.equal(Inference(window=window)(positional, image)["ensemble"], positional(image)["ensemble"])


def test_one_scale_without_flip_is_the_plain_network_bit_for_bit():
    image = torch.rand(1, 3, 20, 30)
    assert torch.equal(Inference(scales=[1.0])(positional, image)["ensemble"], positional(image)["ensemble"])


def test_flip_averages_the_probabilities_of_both_views():
    image = torch.rand(1, 3, 8, 10)
    mean = Inference(flip=True)(positional, image)["ensemble"].softmax(1)
    mirrored = positional(image.flip(-1))["ensemble"].flip(-1)
    torch.testing.assert_close(mean, (positional(image)["ensemble"].softmax(1) + mirrored.softmax(1)) / 2)


def test_scales_average_the_probabilities_at_the_size_of_the_image():
    image = torch.rand(1, 3, 8, 10)
    mean = Inference(scales=[0.5, 1.0, 1.5])(positional, image)["ensemble"].softmax(1)
    expected = torch.zeros_like(mean)
    for size in ((4, 5), (8, 10), (12, 15)):
        view = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
        logits = positional(view)["ensemble"]
        expected += functional.interpolate(logits, size=(8, 10), mode="bilinear", align_corners=False).softmax(1) / 3
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"window": (0, 5)}, "inference.window: got"),
        ({"overlap": 1.0}, "inference.overlap: got 1.0"),
        ({"scales": []}, "inference.scales: got"),
        ({"scales": [0.0]}, "inference.scales: got"),
    ],
)
def test_nonsense_is_refused(arguments, complaint):
    with pytest.raises(CrosscoopError, match=complaint):
        Inference(**arguments)


def test_figures_do_not_depend_on_batches_or_workers(tmp_path):
    fit(tmp_path / "run")
    records = []
    for options in ("--data.eval_batch_size 1 --data.num_workers 0", "--data.eval_batch_size 3 --data.num_workers 2"):
        crosscoop("test", "--run", tmp_path / "run", options)
        records.append((tmp_path / "run" / "confusion.json").read_text())
    assert records[0] == records[1]

"""From images to labels: windows, scales, mirror images, and labels without full-size logits."""

import pytest
import torch
from tiny import STREETS, count, crosscoop, fit, miou
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference, upsampled_labels
from crosscoop.evaluation.metrics import ConfusionMatrix
from crosscoop.evaluation.scores import Scores
from crosscoop.prediction.predictor import Predictor
from crosscoop.training.task import CooperativeSegmentation


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


# -- labels without full-size logits: the same as with them


def whole(logits, size):
    """The way of the textbook."""
    return functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


SIZES = [((129, 129), (513, 513)), ((32, 64), (128, 256)), ((94, 125), (375, 500)), ((1, 1), (5, 7)), ((9, 8), (9, 8))]


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_labels_are_those_of_the_whole_logits(small, size, classes):
    logits = torch.randn(2, classes, *small)
    labels, full = upsampled_labels(logits, size), whole(logits, size)
    assert labels.shape == (2, *size) and labels.dtype == torch.uint8
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=1e-4)  # a highest one, up to rounding
    assert (labels != full.argmax(1)).float().mean() < 1e-4


def test_the_first_of_equal_classes_wins():
    logits = torch.zeros(1, 3, 2, 2)
    assert not upsampled_labels(logits, (4, 4)).any()
    logits[:, 1:] = 1
    assert (upsampled_labels(logits, (4, 4)) == 1).all()


def test_half_precision_is_upsampled_in_full():
    logits = torch.randn(1, 5, 8, 8).bfloat16()
    assert torch.equal(upsampled_labels(logits, (32, 32)), whole(logits, (32, 32)).argmax(1).byte())


def test_strided_logits_and_those_that_require_gradients():
    logits = torch.randn(1, 5, 8, 12, requires_grad=True).contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsampled_labels(logits.flip(-1), (32, 48)), whole(logits.flip(-1), (32, 48)).argmax(1).byte())


def test_the_network_without_upsampling(make_pair):
    network, image = make_pair(), torch.rand(2, 3, 50, 66)
    for logits, coarse in zip(network(image), network(image, upsample=False), strict=True):
        assert coarse.shape == (2, 5, 13, 17)
        assert torch.equal(whole(coarse, image.shape[-2:]), logits)


@pytest.mark.parametrize(
    "options", [{}, {"window": (32, 48)}, {"scales": [0.5, 1.0]}, {"flip": True}, {"window": (40, 40), "flip": True}]
)
def test_evaluation_and_prediction_see_what_the_whole_logits_say(make_pair, options):
    network, inference, image = make_pair(), Inference(**options), torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)
    task = CooperativeSegmentation(network, list("abcde"), inference=inference)
    predictor = Predictor(network, list("abcde"), list(STREETS.palette[:5]), inference, device="cpu")
    with torch.no_grad():
        labels = task.labels(image.float() / 255)
        full = inference(network.outputs, image.float() / 255)
    prediction = predictor(image[0])
    for name, logits in full.items():
        assert (labels[name] != logits.argmax(1)).float().mean() < 1e-3
        assert (labels[name][0].numpy() == prediction.branch_labels[name]).all()
    torch.testing.assert_close(torch.from_numpy(prediction.probabilities), full["ensemble"][0].softmax(0))


def test_figures_are_those_of_the_whole_logits():
    logits, mask = torch.randn(2, 7, 24, 30), torch.randint(7, (2, 96, 120))
    mask[torch.rand(mask.shape) < 0.2] = 255
    metric = ConfusionMatrix(7)
    metric.update(upsampled_labels(logits, (96, 120)), mask)
    expected = count(whole(logits, (96, 120)).argmax(1).numpy(), mask.numpy(), 7)
    assert metric.compute()[:, :7].tolist() == expected.tolist()
    assert Scores(metric.compute(), list("abcdefg")).miou == pytest.approx(miou(expected), abs=1e-12)

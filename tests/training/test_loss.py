"""The losses: what each has to fulfil, and each against an independent computation."""

import math

import numpy as np
import pytest
import torch
from processes import in_ranks
from torch import Tensor
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.training.loss import CrossEntropy, Dice, Focal, Loss, Lovasz, WeightedSum, mean_over_ranks

VOID = 255
LOSSES: dict[str, Loss] = {
    "cross entropy": CrossEntropy(),
    "cross entropy, weighted": CrossEntropy([1, 2, 0.5, 0, 3], label_smoothing=0.1),
    "cross entropy, hardest": CrossEntropy([1, 2, 0.5, 1, 3], hardest=0.3),
    "focal": Focal(class_weights=[1, 2, 0.5, 0, 3]),
    "dice": Dice(),
    "lovasz": Lovasz(),
    "sum": WeightedSum([CrossEntropy(), Dice()], [1, 0.5]),
}
each_loss = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items()])


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of five classes, and masks with void in which one class does not occur and one image has no label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, 9, generator=generator, dtype=dtype, requires_grad=True)
    mask = torch.randint(4, (4, 7, 9), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.3] = VOID
    mask[1] = VOID
    return logits, mask


def labelled_pixels() -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and true classes of the labelled pixels, one a row."""
    logits, mask = draw()
    rows = logits.detach().double().permute(0, 2, 3, 1).numpy()[mask.numpy() != VOID]
    return rows - np.log(np.exp(rows).sum(1, keepdims=True)), mask.numpy()[mask.numpy() != VOID]


# -- what every loss has to fulfil


@each_loss
def test_void_has_no_influence(loss):
    logits, mask = draw()
    other = torch.where(mask[:, None] == VOID, torch.randn_like(logits) * 10, logits.detach()).requires_grad_()
    values = [loss(each, mask) for each in (logits, other)]
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(value, each)[0] for value, each in zip(values, (logits, other), strict=True)]
    assert torch.equal(*gradients)
    assert not gradients[0].mul(mask[:, None] == VOID).any() and gradients[0].any()


@each_loss
def test_all_void_batch_has_loss_zero_and_gradients_zero(loss):
    logits, mask = draw()
    value = loss(logits, torch.full_like(mask, VOID))
    value.backward()
    assert value == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@each_loss
def test_half_precision_logits_are_computed_in_single(loss):
    logits, mask = draw()
    half = logits.detach().bfloat16()
    expected = loss(half.float(), mask)
    assert loss(half, mask).dtype == torch.float32
    torch.testing.assert_close(loss(half, mask), expected, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(half, mask), expected, rtol=1e-6, atol=0)


@each_loss
def test_gradients_are_those_of_finite_differences(loss):
    logits, mask = draw(torch.float64)
    assert torch.autograd.gradcheck(lambda each: loss(each, mask[:, :3, :4]), logits[:, :, :3, :4])


@each_loss
def test_certain_predictions_leave_it_finite(loss):
    _, mask = draw()
    right = functional.one_hot(mask.where(mask != VOID, 0), 5).movedim(-1, 1) * 1000.0
    for certain in (right, right.roll(1, 1)):
        certain.requires_grad_()
        value = loss(certain, mask)
        value.backward()
        assert value.isfinite() and certain.grad.isfinite().all()
        assert value.item() == pytest.approx(0, abs=1e-6) or certain is not right or loss is LOSSES[
            "cross entropy, weighted"]  # fmt: skip


def leave_gradients(rank, folder):
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    logits, mask = draw(torch.float64)
    mine = logits.detach()[2 * rank : 2 * rank + 2].requires_grad_()
    with torch.no_grad():
        alone = mean_over_ranks(torch.tensor(float(rank)))
    gradients = {
        name: torch.autograd.grad(loss(mine, mask[2 * rank : 2 * rank + 2]), mine)[0] for name, loss in LOSSES.items()
    }
    torch.save({"gradients": gradients, "alone": alone}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_learn_what_one_process_learns_from_the_joined_batch(tmp_path):
    assert in_ranks(tmp_path, 2, leave_gradients, tmp_path) == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [part["alone"] for part in parts] == [0, 1], "a validation would wait for the other rank"
    logits, mask = draw(torch.float64)
    for name, loss in LOSSES.items():
        expected = torch.autograd.grad(loss(logits, mask), logits)[0]
        given = torch.cat([part["gradients"][name] for part in parts]) / 2  # DDP's mean over the ranks
        torch.testing.assert_close(
            given, expected, rtol=1e-6, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


# -- each against an independent computation


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0, 3.0], [1, 2, 1, 0, 3]])
def test_cross_entropy_is_torchs_mean_where_there_are_labels(weights, smoothing):
    logits, mask = draw()
    expected = functional.cross_entropy(
        logits,
        mask,
        None if weights is None else torch.tensor(weights).float(),
        ignore_index=VOID,
        label_smoothing=smoothing,
    )
    actual = CrossEntropy(weights, smoothing)(logits, mask)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (actual, expected)))


def test_cross_entropy_is_a_mean_over_pixels_not_over_images():
    rows, truth = labelled_pixels()
    expected = -rows[np.arange(len(truth)), truth].mean()
    assert float(CrossEntropy()(*draw())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.999])
def test_hardest_pixels_are_those_of_the_largest_loss_in_each_image(share):
    logits, mask = draw()
    pixels, chosen = functional.cross_entropy(logits, mask, ignore_index=VOID, reduction="none").detach(), []
    for image, truth in zip(pixels, mask, strict=True):
        losses = sorted(image[truth != VOID].tolist(), reverse=True)
        chosen += losses[: math.ceil(share * len(losses))]
    assert float(CrossEntropy(hardest=share)(logits, mask)) == pytest.approx(sum(chosen) / len(chosen), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0, 3.0]])
def test_focal_weights_pixels_by_what_they_miss(gamma, weights):
    rows, truth = labelled_pixels()
    log = rows[np.arange(len(truth)), truth]
    own = np.array(weights or [1.0] * 5)[truth]
    expected = (own * -((1 - np.exp(log)) ** gamma) * log).sum() / own.sum()
    assert float(Focal(gamma, weights)(*draw())) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(Focal(0, weights)(*draw()), CrossEntropy(weights)(*draw()))


def test_dice_is_that_of_the_classes_in_the_masks():
    rows, truth = labelled_pixels()
    probabilities, true = np.exp(rows), np.eye(5)[truth]
    coefficients = 2 * (probabilities * true).sum(0) / (probabilities.sum(0) + true.sum(0))
    assert set(truth) == {0, 1, 2, 3}
    assert float(Dice()(*draw())) == pytest.approx(1 - coefficients[:4].mean(), rel=1e-6)


def test_dice_and_lovasz_are_those_of_segmentation_models():
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, mask = draw()
    theirs = losses.DiceLoss("multiclass", ignore_index=VOID)(logits, mask)
    torch.testing.assert_close(Dice()(logits, mask), theirs * 5 / 4)  # it counts the absent class as right
    expected = losses.LovaszLoss("multiclass", per_image=True, ignore_index=VOID)
    kept = [0, 2, 3]  # an image without labels has no loss there
    value, reference = Lovasz()(logits, mask), expected(logits[kept], mask[kept])
    torch.testing.assert_close(value, reference)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (value, reference)))


def test_lovasz_of_labels_is_one_minus_their_mean_iou():
    mask = torch.tensor([[[0, 0, 0, 1, 1, VOID]]])
    labels = torch.tensor([[[0, 0, 1, 1, 0, 1]]])
    logits = functional.one_hot(labels, 3).movedim(-1, 1) * 1000.0
    assert float(Lovasz()(logits, mask)) == pytest.approx(1 - (2 / 4 + 1 / 3) / 2)


def test_sum_is_weighted():
    first, second = CrossEntropy()(*draw()), Dice()(*draw())
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()], [2, 0.5])(*draw()), 2 * first + 0.5 * second)
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()])(*draw()), first + second)


# -- refusals


@pytest.mark.parametrize(("make", "parts"), [
    (lambda: CrossEntropy([-1, 2]), ["class_weights", "-1"]),
    (lambda: CrossEntropy([1, 2])(*draw()), ["class_weights", "2 weights", "5 classes"]),
    (lambda: CrossEntropy(label_smoothing=2), ["label_smoothing", "2"]),
    (lambda: CrossEntropy(hardest=0), ["hardest", "0"]),
    (lambda: Focal(-1), ["gamma", "-1"]),
    (lambda: Focal(class_weights=[1, 2])(*draw()), ["class_weights", "2 weights"]),
    (lambda: WeightedSum([]), ["losses"]),
    (lambda: WeightedSum([Dice()], [1, 2]), ["weights", "[1, 2]", "1 losses"]),
    (lambda: WeightedSum([Dice()], [math.nan]), ["weights", "nan"]),
])  # fmt: skip
def test_refuses_in_its_own_words(make, parts):
    with pytest.raises(CrosscoopError) as caught:
        make()
    assert [part for part in parts if part not in str(caught.value)] == []

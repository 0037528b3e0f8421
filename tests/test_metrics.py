"""Metrics, against hand-made tables, torchmetrics and torch's own."""

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from crosscoop.evaluation.boundary import BoundaryIoU
from crosscoop.evaluation.metrics import BranchComparison, ConfusionMatrix, Scores

VOID = 255


def scores(labels: Tensor, mask: Tensor, num_classes: int) -> Scores:
    """The figures of one update."""
    metric = ConfusionMatrix(num_classes)
    metric.update(labels, mask)
    return Scores(metric.compute(), [f"class {i}" for i in range(num_classes)])


def draw(num_classes: int, present: int) -> tuple[Tensor, Tensor]:
    """Labels and masks that agree now and then; the masks hold `present` classes and void."""
    mask = torch.randint(present, (4, 13, 17))
    labels = torch.where(torch.rand(mask.shape) < 0.4, mask, torch.randint(present, mask.shape))
    mask[torch.rand(mask.shape) < 0.2] = VOID
    return labels, mask


@pytest.fixture(params=[False, True], ids=["default", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


# -- the confusion matrix


#              true:  0  0  0  1  1  3  void void
MASK = torch.tensor([[0, 0, 0, 1, 1, 3, 255, 255]])
LABELS = torch.tensor([[0, 0, 1, 1, 0, 1, 2, 0]])
# By hand: IoU of 0 is 2 of {5 true or predicted less 2 both}: 2/4; of 1: 1 of 2 + 3 - 1; of 3: 0 of 1; 2 is absent.


def test_figures_equal_the_hand_made_table_with_an_absent_class():
    figures = scores(LABELS, MASK, 4)
    assert figures.counts[:, :4].tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert figures.iou.nan_to_num(-1).tolist() == [0.5, 0.25, -1, 0]
    assert figures.miou == 0.25
    assert figures.pixel_accuracy == 0.5
    assert figures.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert figures.frequency_weighted_iou == pytest.approx((3 * 0.5 + 2 * 0.25 + 1 * 0) / 6)
    assert figures.absent == ["class 2"]


def test_class_only_predicted_is_not_absent():
    figures = scores(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]), 3)
    assert figures.absent == ["class 1"]
    assert figures.miou == pytest.approx((1 / 2 + 0) / 2)


@pytest.mark.parametrize("present", [6, 4])
@pytest.mark.usefixtures("deterministic")
def test_counts_and_mean_equal_torchmetrics(present):
    labels, mask = draw(6, present)
    figures = scores(labels, mask, 6)
    expected = MulticlassConfusionMatrix(6, ignore_index=VOID)(labels, mask)
    assert torch.equal(figures.counts[:, :6], expected) and figures.counts.sum() == expected.sum()
    jaccard = MulticlassJaccardIndex(6, average="macro", ignore_index=VOID)(labels, mask)
    assert figures.miou == pytest.approx(float(jaccard), abs=1e-6)


FOREIGN = [
    6,
    7,
    254,
    255,
    256,
    261,
    262,
    2**31 - 1,
    2**31,
    2**32 + 1,
    2**40,
    2**63 - 1,
    -1,
    -2,
    -250,
    -(2**31),
    -(2**63),
]
"""Values that are none of 6 classes: also those that would be one after an overflow, or as an index from the end."""


@pytest.mark.parametrize("foreign", FOREIGN)
def test_true_value_outside_the_classes_never_counts(foreign):
    labels, mask = draw(6, 6)
    expected = scores(labels, mask, 6)
    assert torch.equal(scores(labels, mask.where(mask != VOID, foreign), 6).counts, expected.counts)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_values_never_count_as_a_class(foreign):
    """In any figure: predicted ones are wrong, true ones void."""
    labels, mask = draw(6, 6)
    labels[0], labels[1, :3] = foreign, foreign
    nothing = labels.where(labels != foreign, 6)
    assert torch.equal(scores(labels, mask, 6).counts, scores(nothing, mask, 6).counts)
    assert scores(labels, mask, 6).counts[:, 6].sum() == (mask[labels == foreign] != VOID).sum() > 0
    void = mask.where(mask != VOID, foreign)
    for metric in (BoundaryIoU(6), BranchComparison(6)):
        results = []
        for truth, predicted in ((void, labels), (mask, nothing)):
            metric.reset()
            metric.update(dict.fromkeys(("top", "bottom", "ensemble"), predicted)
                          if isinstance(metric, BranchComparison) else predicted, truth)  # fmt: skip
            computed = metric.compute()
            results.append(
                torch.cat([each.flatten() for each in ([computed] if isinstance(computed, Tensor) else computed)])
            )
        assert torch.equal(*results)


def test_predicted_value_outside_the_classes_counts_as_wrong():
    figures = scores(torch.tensor([[0, 6, 255]]), torch.tensor([[0, 0, 1]]), 2)
    assert figures.iou.tolist() == [0.5, 0]
    assert figures.pixel_accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_small_integers_do_not_overflow(dtype):
    mask = torch.arange(19).repeat(1, 3, 1)
    assert torch.equal(scores(mask.to(dtype), mask.to(dtype), 19).counts, scores(mask, mask, 19).counts)


def test_halves_merge_into_the_whole():
    labels, mask = draw(6, 6)
    whole, in_turn, first, second = (ConfusionMatrix(6) for _ in range(4))
    whole.update(labels, mask)
    for metric, half in ((first, slice(0, 1)), (second, slice(1, 4))):
        metric.update(labels[half], mask[half])
        in_turn.update(labels[half], mask[half])
    assert torch.equal(in_turn.compute(), whole.compute())
    first.merge_state(second)
    assert torch.equal(first.compute(), whole.compute())


def test_mean_is_over_classes_of_all_images_not_over_images():
    mask = torch.tensor([[[0, 0, 0, 1]], [[0, 0, 0, 0]]])
    labels = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 0, 0]]])
    per_image = [scores(labels[i], mask[i], 2).miou for i in range(2)]
    assert sum(per_image) / 2 == (3 / 4 / 2 + 1) / 2
    assert scores(labels, mask, 2).miou == 7 / 8 / 2


def test_figures_without_any_label_are_none_in_json():
    figures = scores(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), VOID), 2).to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False))["miou"] is None
    assert figures["absent_classes"] == ["class 0", "class 1"]
    assert figures["iou_per_class"] == {"class 0": None, "class 1": None}


def test_reset_forgets():
    metric = ConfusionMatrix(2)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    metric.reset()
    assert not metric.counts.any()


def test_branches_are_compared_pixel_by_pixel():
    mask = torch.tensor([[0, 0, 0, 1, 1, VOID]])
    outputs = {
        "top": torch.tensor([[0, 0, 1, 1, 0, 0]]),
        "bottom": torch.tensor([[0, 1, 1, 1, 1, 1]]),
        "ensemble": torch.tensor([[0, 0, 1, 0, 1, 0]]),
    }
    comparison = BranchComparison(2)
    comparison.update(outputs, mask)
    right, disagreeing = comparison.compute()
    assert disagreeing.tolist() == [1, 1]
    assert right.sum() == 5
    assert [int(right[case]) for case in ((0, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0), (1, 1, 1, 0), (1, 0, 1, 1))] == [
        1
    ] * 5


# -- boundary IoU


def test_boundary_iou_of_shifted_squares():
    """Two 4 x 4 squares, one pixel apart, on 10 x 10: rings of 12 pixels that share 6; the ground has rings too."""
    mask, labels = torch.zeros(2, 1, 10, 10, dtype=torch.int64)
    mask[0, 3:7, 3:7], labels[0, 3:7, 4:8] = 1, 1
    metric = BoundaryIoU(3)
    metric.update(labels, mask)
    intersection, union = metric.compute().tolist()
    assert (intersection[1], union[1], union[2]) == (6, 18, 0)
    figures = Scores(torch.zeros(3, 4), ["ground", "square", "absent"], metric.compute()).to_dict()
    assert figures["boundary_iou_per_class"]["square"] == pytest.approx(1 / 3)
    assert figures["boundary_iou_per_class"]["absent"] is None


def test_boundary_iou_leaves_void_and_the_inside_out():
    mask, labels = torch.zeros(2, 1, 20, 20, dtype=torch.int64)
    mask[0, :, 15:] = VOID
    labels[0, :, 15:], labels[0, 8:12, 6:9] = 1, 1  # wrong under void, and deep inside, where no true outline is
    metric = BoundaryIoU(2)
    metric.update(mask.clamp(max=1), mask)
    assert metric.compute()[0].equal(metric.compute()[1]), "a prediction under void counted"
    metric.update(labels, mask)
    assert metric.compute()[1, 1] == 4 * 3 - 2

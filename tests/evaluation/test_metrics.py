"""Metrics, against hand-made tables, torchmetrics and torch's own."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from tiny import STREETS, count, crosscoop, fit
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from crosscoop import load
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.boundary import BoundaryIoU, near_outlines
from crosscoop.evaluation.calibration import Calibration, calibration_record
from crosscoop.evaluation.evaluator import Evaluator
from crosscoop.evaluation.metrics import BranchComparison, ConfusionMatrix, SegmentationMetric
from crosscoop.evaluation.records import branch_record, branch_shares, branch_table
from crosscoop.evaluation.scores import Scores
from crosscoop.network.outputs import branch_names, branches_of, main_output, output_names

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
    for metric in (BoundaryIoU(6), BranchComparison(6, ["top", "bottom"])):
        results = []
        for truth, predicted in ((void, labels), (mask, nothing)):
            metric.reset()
            metric.update(dict.fromkeys(("top", "bottom", "ensemble"), predicted)
                          if isinstance(metric, BranchComparison) else predicted, truth)  # fmt: skip
            results.append(torch.cat([counts.flatten().clone() for counts in metric.metric_state.values()]))
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


def by_hand(outputs: dict[str, Tensor], mask: Tensor, index: int) -> dict[str, float]:
    """The shares of `branch_record` of one class, pixel by pixel."""
    branches = [name for name in outputs if name != "ensemble"]
    counts = Counter[str]()
    for place in (mask == index).nonzero().tolist():
        given = {name: int(labels[tuple(place)]) for name, labels in outputs.items()}
        right = [name for name in branches if given[name] == index]
        counts["pixels"] += 1
        counts[f"only_{right[0]}" if len(right) == 1 else "neither" if not right else "several"] += 1
        counts["saved"] += given["ensemble"] == index and len(right) <= 1
        counts["lost"] += given["ensemble"] != index and len(right) >= 1
        counts["disagree"] += len({given[name] for name in branches}) > 1
    keys = [*(f"only_{name}" for name in branches), "neither", "saved", "lost", "disagree"]
    return {"pixels": counts["pixels"], **{key: counts[key] / counts["pixels"] for key in keys}}


@pytest.mark.parametrize("number", [2, 3, 9])
def test_branches_are_compared_pixel_by_pixel(number):
    labels, mask = draw(4, 3)
    outputs = {name: draw(4, 4)[0].where(torch.rand(mask.shape) < 0.6, labels) for name in output_names(number)}
    comparison = BranchComparison(4, branch_names(number))
    for i in range(len(mask)):
        comparison.update({name: each[i] for name, each in outputs.items()}, mask[i])
    counts = comparison.compute()
    record = branch_record(counts, counts, list("abcd"), comparison.branches)
    assert list(record) == [*"abcd", "near outlines", "all"] and record["near outlines"] == record["all"]
    assert record["d"]["pixels"] == 0 and record["d"]["neither"] is None
    for index, name in enumerate("abc"):
        expected = by_hand(outputs, mask, index)
        assert record[name] == pytest.approx(expected) and list(record[name]) == list(expected)
    assert branch_table(record).row_count == 6


def test_pixels_near_outlines():
    mask = torch.full((1, 40, 300), 1, dtype=torch.uint8)
    mask[:, :, :100], mask[:, 10:, 200:] = 0, 255  # void has outlines, too
    near = near_outlines(mask)[0]  # within 2 pixels: 0.005 of 303
    assert near[5].nonzero().flatten().tolist() == [98, 99, 100, 101]
    assert near[30].nonzero().flatten().tolist() == [98, 99, 100, 101, 198, 199, 200, 201]
    assert near[:, 250].nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_calibration_counts_what_each_confidence_is_worth():
    torch.manual_seed(1)
    logits, mask = 2 * torch.randn(2, 4, 20, 30), torch.randint(0, 5, (2, 40, 60))  # class 4 is void
    calibration = Calibration()
    for i in range(2):
        calibration.update(logits[i : i + 1], mask[i : i + 1])
    record = calibration_record({"top": calibration.compute()}, "a protocol")["outputs"]["top"]
    bins = {}
    for probabilities, true in zip(logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, 4).tolist(),
                                   mask[:, 1::2, 1::2].flatten().tolist(), strict=True):  # fmt: skip
        if true < 4:
            confidence = max(probabilities)
            bins.setdefault(int(20 * confidence), []).append((confidence, probabilities.index(confidence) == true))
    total = sum(map(len, bins.values()))
    assert len(record["bins"]) == len(bins) > 10
    for shown, (_, pixels) in zip(record["bins"], sorted(bins.items()), strict=True):
        confidence, accuracy = (sum(each) / len(pixels) for each in zip(*pixels, strict=True))
        assert shown == pytest.approx({"share": len(pixels) / total, "confidence": confidence, "accuracy": accuracy},
                                      abs=6e-4)  # fmt: skip
    gaps = [abs(sum(c - r for c, r in pixels)) for pixels in bins.values()]
    assert record["ece"] == pytest.approx(sum(gaps) / total, abs=6e-4)


# -- the evaluator


class Agreement(SegmentationMetric):
    """A metric of a user: the share of right labels, over all and per class."""

    def __init__(self, num_classes: int, scale: float = 1.0) -> None:
        super().__init__(num_classes)
        self.scale = scale
        self.add_state("counts", torch.zeros(2, num_classes), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        for index in range(self.num_classes):
            self.counts[0, index] += ((mask == index) & (labels == index)).sum()
            self.counts[1, index] += (mask == index).sum()

    def compute(self) -> dict[str, Tensor]:
        return {"agreement": self.scale * self.counts[0].sum() / self.counts[1].sum(),
                "class_agreement": self.counts[0] / self.counts[1]}  # fmt: skip


def test_evaluators_of_parts_merge_into_the_whole():
    mask = draw(4, 3)[1]
    outputs = {name: draw(4, 4)[0] for name in output_names(2)}
    whole, *parts = (Evaluator(list("abcd"), outputs, [BoundaryIoU, Agreement]) for _ in range(3))
    whole.update(outputs, mask)
    for part, rows in zip(parts, (slice(0, 1), slice(1, 4)), strict=True):
        part.update({name: labels[rows] for name, labels in outputs.items()}, mask[rows])
    parts[0].merge(parts[1])
    assert parts[0].num_images() == whole.num_images() == 4
    figures = [{name: scores.to_dict() for name, scores in each.compute().items()} for each in (whole, parts[0])]
    assert figures[0] == figures[1] and list(figures[0]) == ["top", "bottom", "ensemble"]
    top = figures[0]["top"]
    assert top["agreement"] == pytest.approx(top["pixel_accuracy"]) and top["class_agreement_per_class"]["d"] is None
    assert top["boundary_miou"] != figures[0]["bottom"]["boundary_miou"]
    whole.reset()
    assert whole.num_images() == 0 and not whole.compute()["top"].counts.any()


@pytest.mark.parametrize(("figures", "message"), [
    (torch.tensor(0.5), "expected a dict"),
    ({"Dice": torch.tensor(0.5)}, "lower case"),
    ({"miou": torch.tensor(0.5)}, "already in use"),
    ({"iou": torch.zeros(4)}, "already in use"),
    ({"protocol": torch.tensor(0.5)}, "already in use"),
    ({"dice": 0.5}, "got float"),
    ({"dice": torch.zeros(3)}, r"got shape \(3,\), expected .*\(4,\)"),
    ({"dice": torch.tensor(50.0)}, "got 50, expected shares from -1 to 1"),
])  # fmt: skip
def test_figures_that_tables_cannot_show_are_refused(figures, message, monkeypatch):
    monkeypatch.setattr(Agreement, "compute", lambda self: figures)
    evaluator = Evaluator(list("abcd"), ["network"], [Agreement])
    labels, mask = draw(4, 3)
    evaluator.update({"network": labels}, mask)
    with pytest.raises(CrosscoopError, match=rf"(?s)^metrics: Agreement\.compute\(\).*{message}"):
        evaluator.compute()


def test_figures_of_one_name_are_refused():
    evaluator = Evaluator(list("abcd"), ["network"], [Agreement, Agreement])
    labels, mask = draw(4, 3)
    evaluator.update({"network": labels}, mask)
    with pytest.raises(CrosscoopError, match="'agreement', a name already in use"):
        evaluator.compute()


# -- the outputs' names


def test_main_output_and_branches():
    assert [output_names(n)[:-1] or ["network"] for n in (1, 2, 4)] == [branch_names(n) for n in (1, 2, 4)]
    assert main_output(["ensemble", "top", "bottom"]) == "ensemble"
    assert main_output(["network"]) == "network" and main_output(["bottom"]) == "bottom"
    assert branches_of(["ensemble", "top"]) == ["top"]
    assert branch_shares(branch_names(2))["neither"] == "neither right"
    assert branch_shares(branch_names(3))["neither"] == "none right"


# -- boundary IoU


def test_boundary_iou_of_shifted_squares():
    """Two 4 x 4 squares, one pixel apart, on 10 x 10: rings of 12 pixels that share 6; the ground has rings too."""
    mask, labels = torch.zeros(2, 1, 10, 10, dtype=torch.int64)
    mask[0, 3:7, 3:7], labels[0, 3:7, 4:8] = 1, 1
    metric = BoundaryIoU(3)
    metric.update(labels, mask)
    intersection, union = metric.counts.tolist()
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
    assert metric.counts[0].equal(metric.counts[1]), "a prediction under void counted"
    metric.update(labels, mask)
    assert metric.counts[1, 1] == 4 * 3 - 2


# -- a metric of the user's own, one file: it appears wherever figures do

METRIC = '''
import torch
from torch import Tensor

from crosscoop import SegmentationMetric


class Dice(SegmentationMetric):
    """Twice the intersection of truth and prediction, as a share of the sum of the two."""

    def __init__(self, num_classes: int, smooth: float = 0.0) -> None:
        super().__init__(num_classes)
        self.smooth = smooth
        self.add_state("both", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("sizes", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        for index in range(self.num_classes):
            true, predicted = mask == index, (labels == index) & (mask < self.num_classes)
            self.both[index] += (true & predicted).sum()
            self.sizes[index] += true.sum() + predicted.sum()

    def compute(self) -> dict[str, Tensor]:
        dice = (2 * self.both + self.smooth) / (self.sizes + self.smooth)
        return {"mean_dice": dice.nanmean(), "dice": dice}
'''


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A run that was trained and tested with the metric, and what the commands printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_metric.py").write_text(METRIC)
    (folder / "metrics.yaml").write_text(
        "model: {metrics: [{class_path: my_metric.Dice, init_args: {smooth: 0.5}}, {class_path: BoundaryIoU}]}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        logger = "--trainer.logger CSVLogger --trainer.logger.save_dir"
        fit(folder / "run", "--config", folder / "metrics.yaml", logger, folder, "--checkpoint.monitor val/mean_dice")
        with redirect_stdout(StringIO()) as printed:
            crosscoop("test", "--run", folder / "run", "--trainer.accelerator cpu --trainer.enable_progress_bar false")
        yield folder, printed.getvalue()


def dice_by_hand(folder: Path, output: str) -> float:
    """The mean over classes, from predictions."""
    predictor = load(folder / "run" / "best.ckpt", device="cpu")
    counts = sum(count(predictor(s.image()).branch_labels[output], s.mask(), 12) for s in STREETS.samples("test"))
    dice = (2 * counts.diagonal() + 0.5) / (counts.sum(0) + counts.sum(1) + 0.5)
    return float(dice.mean())


def test_metrics_json_and_the_console_hold_it(tested):
    folder, printed = tested
    metrics = json.loads((folder / "run/metrics.json").read_text())
    assert metrics["mean_dice"] == metrics["outputs"]["ensemble"]["mean_dice"]
    for output, figures in metrics["outputs"].items():
        assert figures["mean_dice"] == pytest.approx(dice_by_hand(folder, output), abs=1e-6)
        assert list(figures["dice_per_class"]) == list(STREETS.class_names) and "boundary_miou" in figures
    cells = [f"{100 * each['mean_dice']:.2f}" for each in metrics["outputs"].values()]
    assert re.search(rf"mean dice\W+{cells[0]}\W+{cells[1]}\W+{cells[2]}", printed)
    road = metrics["dice_per_class"][STREETS.class_names[0]]
    assert re.search(rf"dice\W.*{STREETS.class_names[0]}[^\n]*{100 * road:.2f}", printed, re.S)


def test_history_and_loggers_hold_it(tested):
    folder, _ = tested
    (row,) = csv.DictReader((folder / "run/history.csv").open())
    assert float(row["val/mean_dice/top"]) != float(row["val/mean_dice/ensemble"])
    (log,) = folder.rglob("lightning_logs/version_0/metrics.csv")  # of the training; the test has its own
    logged = {key: value for row in csv.DictReader(log.open()) for key, value in row.items() if value}
    assert float(logged["val/mean_dice"]) == pytest.approx(float(row["val/mean_dice/ensemble"]), abs=1e-6)
    assert {"val/mean_dice/top", f"val/dice/{STREETS.class_names[0]}", "val/boundary_miou"} <= set(logged)


def test_report_holds_it(tested):
    folder, _ = tested
    crosscoop("report", folder / "run", "--output", folder / "report.html", "--num_images 0")
    page = (folder / "report.html").read_text()
    assert page.count('<th scope="row">mean dice</th>') == 1 and "<summary>dice per class</summary>" in page
    assert "Validation mean dice (%)" in page


def test_score_measures_it(tested):
    folder, _ = tested
    crosscoop("predict", "--run", folder / "run")
    crosscoop("score", "--predictions", folder / "run/predictions/test/labels", "--config", folder / "run/config.yaml",
              "--metrics+=my_metric.Dice --metrics.smooth 0.5", "--output", folder / "score.json")  # fmt: skip
    score, metrics = (json.loads((folder / name).read_text()) for name in ("score.json", "run/metrics.json"))
    assert score["mean_dice"] == pytest.approx(metrics["mean_dice"], abs=1e-6)
    assert score["dice_per_class"] == pytest.approx(metrics["dice_per_class"], abs=1e-6)

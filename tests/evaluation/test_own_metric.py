"""A metric of your own is one file: it appears wherever figures do."""

import csv
import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tiny import STREETS, count, crosscoop, fit

from crosscoop import load

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
    (log,) = folder.rglob("lightning_logs/*/metrics.csv")
    logged = {key: value for row in csv.DictReader(log.open()) for key, value in row.items() if value}
    assert float(logged["val/mean_dice"]) == pytest.approx(float(row["val/mean_dice/ensemble"]), abs=1e-6)
    assert {"val/mean_dice_top", f"val/dice/{STREETS.class_names[0]}", "val/boundary_miou"} <= set(logged)


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

"""`crosscoop score`: the metrics of label files written by any tool."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from crosscoop.data import Cityscapes, Sample
from crosscoop.data.dataset import Array
from crosscoop.data.datasets.cityscapes import LABEL_TO_TRAIN
from crosscoop.data.images import read_mask
from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.boundary import BoundaryIoU  # noqa: F401  (a metric that the command line offers by name)
from crosscoop.evaluation.evaluator import Evaluator
from crosscoop.evaluation.label_files import check_size, each_prediction
from crosscoop.evaluation.metrics import MetricFactory
from crosscoop.evaluation.records import to_record, to_table
from crosscoop.files import write_json

OUTPUT = "predictions"
"""Name of the output that the label files represent."""


def score(
    predictions: str,
    data: SegmentationLoaders,
    split: str | None = None,
    label_ids: bool = False,
    metrics: Sequence[MetricFactory] = (),
    output: str | None = None,
) -> dict[str, Any]:
    """Score label PNGs written by any tool, as crosscoop test scores a network.

      crosscoop score --predictions labels --config configs/voc/parts/data.yaml
      crosscoop score --predictions labels --data.dataset CamVid --data.dataset.root data/camvid --split val

    The folder or its subfolders must contain one PNG per image of the split: greyscale or with a palette, as large as
    the image, with class indices as values. 255 means no class and counts as wrong at every labelled pixel. A file has
    the name of its sample (aachen/aachen_000000_000019.png) or its image (aachen_000000_000019_leftImg8bit.png); the
    subfolder matters only if several samples share a name. Other files in the folder are ignored.

    Args:
        predictions: The folder of label PNGs.
        data: The data set that they belong to, usually from --config; single options override it, such as
            --data.dataset.root FOLDER. The evaluated pixels are those of crosscoop test: full masks at their own size,
            unless data.center_crop or data.resize_masks is set.
        split: The split that they belong to; by default the data set's test_split, as in crosscoop test.
        label_ids: The values are Cityscapes' labelIds, as its server expects them, instead of class indices (trainIds).
            Ids outside the 19 classes mean no class.
        metrics: Metrics in addition to those of the confusion matrix, like --model.metrics in crosscoop test:
            --metrics+=BoundaryIoU, which takes much longer, or your own `crosscoop.SegmentationMetric`.
        output: A file for the metrics, or a folder for metrics.json; by default they are only printed.

    Returns:
        The metrics, as in the file.

    Raises:
        CrosscoopError: Label files are missing, ambiguous, of another size, or contain other values.
    """
    folder, split, dataset = Path(predictions), split or data.dataset.test_split, data.dataset
    if label_ids and not isinstance(dataset, Cityscapes):
        raise CrosscoopError(f"label_ids: got {type(dataset).__name__}, expected Cityscapes, as only it has labelIds.")
    path = free_output(Path(output)) if output else None
    data.prepare_data()
    samples, num_classes = data.samples(split), dataset.num_classes

    def measure(sample: Sample, file: Path) -> Evaluator:
        lookup = LABEL_TO_TRAIN if label_ids else None
        labels, mask = read_mask(file, num_classes, lookup, dataset.legend), evaluated_mask(sample, data)
        check_size(file, labels, mask.shape)
        evaluator = Evaluator(dataset.class_names, [OUTPUT], metrics)
        evaluator.update({OUTPUT: torch.from_numpy(labels)[None]}, torch.from_numpy(mask)[None])
        return evaluator

    remedy = ""
    if data.resize_masks or data.center_crop:
        remedy += " Sizes follow data.resize_masks and data.center_crop; set false and null to score full images."
    if isinstance(dataset, Cityscapes) and not label_ids:
        remedy += " If the values are labelIds, add --label-ids."
    evaluators = each_prediction(folder, samples, measure, "Scoring", remedy)
    evaluator = next(evaluators)
    for other in evaluators:
        evaluator.merge(other)
    scores = evaluator.compute()
    if not scores[OUTPUT].true.any():
        raise CrosscoopError(
            f"{type(dataset).__name__} {split}: got no labelled pixels, expected a split with masks. Give --split."
        )

    protocol = {**data.protocol(split, len(samples)), "inference": "label files"}
    record = {**to_record("score", scores, protocol), "predictions": str(folder)}
    Console().print(to_table(record))
    if path:
        try:
            write_json(path, record)
        except OSError as error:
            raise CrosscoopError(f"{path}: got {error}, expected a writable file. Give another --output.") from error
        print(f"Metrics: {path}")
    return record


def free_output(path: Path) -> Path:
    """Return the file for the metrics, which may replace earlier ones of `score` but not those of a run.

    Args:
        path: The file, or its folder.

    Raises:
        CrosscoopError: The file contains something else.
    """
    path = path / "metrics.json" if path.is_dir() or not path.suffix else path
    if path.exists():
        try:
            stage = json.loads(path.read_text())["stage"]
        except (OSError, ValueError, TypeError, KeyError):
            stage = "something"
        if stage != "score":
            raise CrosscoopError(
                f"{path} contains the metrics of {stage}, expected those of score or no file. Give --output."
            )
    return path


def evaluated_mask(sample: Sample, data: SegmentationLoaders) -> Array:
    """Return the mask `(H, W)` on which a sample is evaluated; all void for unlabelled samples.

    Args:
        sample: The sample.
        data: How it is evaluated.
    """
    mask = None if data.resize_masks or data.center_crop else sample.mask()  # without reading the image
    if mask is None:
        mask = EvaluationSet([sample], data.resize, data.center_crop, resize_masks=data.resize_masks)[0]["mask"].numpy()
    return mask

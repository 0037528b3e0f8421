"""`crosscoop score`: the figures of label files that any tool wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from crosscoop.data import Cityscapes, Sample, SegmentationData
from crosscoop.data.dataset import Array
from crosscoop.data.datasets.cityscapes import LABEL_TO_TRAIN
from crosscoop.data.images import read_mask
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.boundary import BoundaryIoU  # noqa: F401  (a metric that the command line has by name)
from crosscoop.evaluation.evaluator import Evaluator
from crosscoop.evaluation.label_files import check_size, each_prediction
from crosscoop.evaluation.metrics import MetricFactory
from crosscoop.evaluation.records import to_record, to_table
from crosscoop.files import write_json

OUTPUT = "predictions"
"""What the label files are called as an output."""


def score(
    predictions: str,
    data: SegmentationData,
    split: str | None = None,
    label_ids: bool = False,
    metrics: Sequence[MetricFactory] = (),
    output: str | None = None,
) -> dict[str, Any]:
    """Score label PNGs that any tool wrote, as crosscoop test scores a network.

      crosscoop score --predictions labels --config configs/voc/parts/data.yaml
      crosscoop score --predictions labels --data.dataset CamVid --data.dataset.root data/camvid --split val

    Every image of the split needs one PNG in the folder or its subfolders, as large as the image, grey or with a
    palette, whose values are class indices. 255 stands for no class and is wrong wherever there is a label. A file is
    named as its sample (aachen/aachen_000000_000019.png) or its image (aachen_000000_000019_leftImg8bit.png); the
    subfolder matters only where several samples share a name. Other files in the folder are not used.

    Args:
        predictions: The folder of label PNGs.
        data: The data set that they belong to, usually from --config; single options win over it, such as
            --data.dataset.root FOLDER. What is evaluated is what crosscoop test evaluates: data.resize and
            data.center_crop apply to the masks, and null in both takes whole images at their own size.
        split: The split that they belong to; by default the data set's test_split, as for crosscoop test.
        label_ids: Whether the values are Cityscapes' labelIds, as its server takes them, instead of class indices
            (trainIds). Ids outside the 19 classes stand for no class.
        metrics: What to measure beside the confusion matrix's figures, as --model.metrics in crosscoop test:
            --metrics+=BoundaryIoU, which takes much longer, or your own `crosscoop.SegmentationMetric`.
        output: The file for the figures, or its folder; by default metrics.json in the folder of the PNGs.

    Returns:
        What the file holds.

    Raises:
        CrosscoopError: Label files are missing, doubled, of another size, or hold other values.
    """
    folder, split, dataset = Path(predictions), split or data.dataset.test_split, data.dataset
    if label_ids and not isinstance(dataset, Cityscapes):
        raise CrosscoopError(f"label_ids: got {type(dataset).__name__}, expected Cityscapes, which alone has labelIds.")
    path = free_output(Path(output or folder))
    data.prepare_data()
    samples, num_classes = data.evaluation_set(split).samples, dataset.num_classes

    def measure(sample: Sample, file: Path) -> Evaluator:
        lookup = LABEL_TO_TRAIN if label_ids else None
        labels, mask = read_mask(file, num_classes, lookup, dataset.legend), evaluated_mask(sample, data)
        check_size(file, labels, mask.shape)
        evaluator = Evaluator(dataset.class_names, [OUTPUT], metrics)
        evaluator.update({OUTPUT: torch.from_numpy(labels)[None]}, torch.from_numpy(mask)[None])
        return evaluator

    remedy = ""
    if data.resize or data.center_crop:
        remedy += " Sizes follow data.resize and data.center_crop; null in both scores whole images."
    if isinstance(dataset, Cityscapes) and not label_ids:
        remedy += " Are the values labelIds? Then add --label-ids."
    evaluators = each_prediction(folder, samples, measure, "Scoring", remedy)
    evaluator = next(evaluators)
    for other in evaluators:
        evaluator.merge(other)
    scores = evaluator.compute()
    if not scores[OUTPUT].true.any():
        raise CrosscoopError(
            f"{type(dataset).__name__} {split}: got no label, expected a split with masks. Give --split."
        )

    protocol = {**data.protocol(split, len(samples)), "inference": "label files"}
    record = {**to_record("score", scores, protocol), "predictions": str(folder)}
    Console().print(to_table(record))
    try:
        write_json(path, record)
    except OSError as error:
        raise CrosscoopError(f"{path}: got {error}, expected to write the figures there. Give --output.") from error
    print(f"Figures: {path}")
    return record


def free_output(path: Path) -> Path:
    """The file for the figures, which may replace earlier ones of `score`, but not those of a run.

    Args:
        path: The file, or its folder.

    Raises:
        CrosscoopError: The file holds something else.
    """
    path = path / "metrics.json" if path.is_dir() or not path.suffix else path
    if path.exists():
        try:
            stage = json.loads(path.read_text())["stage"]
        except (OSError, ValueError, TypeError, KeyError):
            stage = "something"
        if stage != "score":
            raise CrosscoopError(
                f"{path} holds the figures of {stage}, expected those of score or no file. Give --output."
            )
    return path


def evaluated_mask(sample: Sample, data: SegmentationData) -> Array:
    """The mask `(H, W)` on which a sample is evaluated; all void for unlabelled samples.

    Args:
        sample: The sample.
        data: How it is evaluated.
    """
    mask = None if data.resize or data.center_crop else sample.mask()  # which needs no image
    if mask is None:
        mask = EvaluationSet([sample], data.resize, data.center_crop)[0]["mask"].numpy()
    return mask

"""`crosscoop score`: the figures of label files that any tool wrote."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from crosscoop.data import Cityscapes, Sample, SegmentationData
from crosscoop.data.cityscapes import LABEL_TO_TRAIN
from crosscoop.data.dataset import Array
from crosscoop.data.files import read_mask, shorten
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.errors import CrosscoopError
from crosscoop.metrics import Scores, count_pairs
from crosscoop.results import to_record, to_table, write_json

Result = TypeVar("Result")


class WrongSizeError(CrosscoopError):
    """A label file is not as large as what it labels."""


def score(
    predictions: str,
    data: SegmentationData,
    split: str | None = None,
    label_ids: bool = False,
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
    samples = dataset.samples(split)
    protocol = {**data.protocol(split), "inference": "label files"}
    num_classes = dataset.num_classes

    def count(sample: Sample, file: Path) -> torch.Tensor:
        labels = read_mask(file, num_classes, LABEL_TO_TRAIN if label_ids else None)
        mask = evaluated_mask(sample, data)
        check_size(file, labels, mask.shape)
        return count_pairs(torch.from_numpy(labels), torch.from_numpy(mask), num_classes)

    remedy = ""
    if data.resize or data.center_crop:
        remedy += " Sizes follow data.resize and data.center_crop; null in both scores whole images."
    if isinstance(dataset, Cityscapes) and not label_ids:
        remedy += " Are the values labelIds? Then add --label_ids true."
    counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
    for pairs in each_prediction(folder, samples, count, "Scoring", remedy):
        counts += pairs
    if not counts.any():
        raise CrosscoopError(
            f"{type(dataset).__name__} {split}: got no label, expected a split with masks. Give --split."
        )

    record = to_record("score", {"predictions": Scores(counts, dataset.class_names)}, protocol)
    record["predictions"] = str(folder)
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


def check_size(file: Path, labels: Array, expected: Sequence[int]) -> None:
    """Refuses labels of another size.

    Args:
        file: Where they come from.
        labels: `(H, W)` labels.
        expected: Height and width.

    Raises:
        WrongSizeError: The sizes differ.
    """
    if labels.shape != tuple(expected):
        sizes = f"{labels.shape[0]} x {labels.shape[1]}, expected {expected[0]} x {expected[1]}"
        raise WrongSizeError(f"{file} (got {sizes})")


def each_prediction(
    folder: Path, samples: Sequence[Sample], work: Callable[[Sample, Path], Result], title: str, remedy: str = ""
) -> Iterator[Result]:
    """Work on the label file of each sample, several at a time; all faults make one error at the end.

    Args:
        folder: The folder of label files, searched with its subfolders.
        samples: The samples, all of which need one file.
        work: What to do with a sample and its file; the results come in the samples' order.
        title: What the progress bar says.
        remedy: What to add to the error.

    Raises:
        CrosscoopError: Files are missing or doubled, or the work raised some on them.
    """
    files, extra = match(folder, samples)
    matched = [sample for sample in samples if len(files[sample.name]) == 1]
    faults: dict[str, list[str]] = {
        "missing": [name for name, found in files.items() if not found],
        "doubled": [f"{name} ({' and '.join(map(str, found))})" for name, found in files.items() if len(found) > 1],
        "of another size": [],
        "unusable": [],
    }

    def attempt(sample: Sample) -> Result | CrosscoopError:
        try:
            return work(sample, files[sample.name][0])
        except CrosscoopError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in track(pool.map(attempt, matched), title, total=len(matched), transient=True):
            if isinstance(result, CrosscoopError):
                faults["of another size" if isinstance(result, WrongSizeError) else "unusable"].append(str(result))
            else:
                yield result
    if extra:
        print(f"{folder}: {len(extra)} PNG files belong to no image of the split and are not used: {shorten(extra)}")
    if any(faults.values()):
        name, example = samples[0].name, stems(samples[0])
        lines = [f"- {len(items)} {kind}: {shorten(items)}" for kind, items in faults.items() if items]
        raise CrosscoopError(
            f"{folder}: got label files that do not fit the {len(samples)} images.\n" + "\n".join(lines) + "\n"
            f"Expected one PNG per image, of its size, of class indices, named as {name}.png"
            + (f" or {example[-1]}.png." if len(example) > 1 else ".")
            + remedy
        )


def match(folder: Path, samples: Sequence[Sample]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The PNG files that are named as a sample or its image.

    Args:
        folder: The folder, searched with its subfolders.
        samples: The samples.

    Returns:
        The files of each sample, by its name; and the files that belong to none.

    Raises:
        CrosscoopError: There is no such folder.
    """
    if not folder.is_dir():
        raise CrosscoopError(f"predictions: got {folder}, which is no folder, expected a folder of label PNGs.")
    owners: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        for stem in stems(sample):
            owners[stem].append(sample.name)
    files: dict[str, list[Path]] = {sample.name: [] for sample in samples}
    extra = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() != ".png" or file.name.startswith(".") or not file.is_file():
            continue
        names = owners.get(file.stem, [])
        if len(names) > 1:  # then its folders tell; the longest name that fits
            within = f"/{file.relative_to(folder).with_suffix('').as_posix()}"
            names = sorted((name for name in names if within.endswith(f"/{name}")), key=len)
        if names:
            files[names[-1]].append(file)
        else:
            extra.append(file)
    return files, extra


def stems(sample: Sample) -> list[str]:
    """File names, without suffix, by which a sample's label file is known: its own, and the image's if that differs."""
    own, image = sample.name.rpartition("/")[2], getattr(sample, "image_path", None)
    return list(dict.fromkeys([own, own if image is None else Path(image).stem]))

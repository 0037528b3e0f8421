"""`crosscoop check-data`: every file of a data set, looked at before it costs a training."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from crosscoop.data import VOID, Sample, SegmentationData, SegmentationDataset
from crosscoop.data.check import Fault, files_of, nothing_to_learn, overlap
from crosscoop.data.peculiarities import Note, of_sample, summed_up
from crosscoop.data.pipeline import check_pair, check_values
from crosscoop.data.samples import MissingFilesError, SplitError
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.records import percent
from crosscoop.files import shorten, write_json


def check_data(data: SegmentationData, workers: int | None = None, output: str | None = None, show: int = 10) -> None:
    """Look for faults in a data set, at every image and mask of its training, validation and test split.

      crosscoop check-data --config configs/voc/parts/data.yaml
      crosscoop check-data --data.dataset CamVid --data.dataset.root data/camvid --output camvid.json

    Faults are: a file that is missing, empty or damaged, a mask of another size than its image, a mask that is lossy,
    holds values or colours of no class, or contradicts the colours of the classes, a training image without a mask, a
    class of which the training masks show no pixel, a number of images that is not the official one, and the same image
    (pixel by pixel) twice in a split or in two splits. Noted are names that occur in two splits for different images,
    classes that another split does not have, files of several pages, images that EXIF turns upside down or mirrors and
    whose masks it does not, and 16-bit images that are dark because they do not use all bits. The exit code is 0
    without faults, 1 with faults, 2 if there is nothing to look at or an option is wrong.

    Args:
        data: The data set, usually from --config; single options win over it, such as --data.dataset.root FOLDER.
        workers: Number of processes; by default one per core. 0 works in this one.
        output: A JSON file for the report, with all faults.
        show: How many faults of a kind to print.

    Raises:
        CrosscoopError: No split could be found.
        SystemExit: With code 1 if there are faults, with 130 after Ctrl-C.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 0 or show < 1:
        raise CrosscoopError(f"workers and show: got {workers} and {show}, expected at least 0 and 1.")
    data.prepare_data()
    dataset = data.dataset
    splits, faults = find_splits(dataset)
    try:
        looks = look_at(splits, dataset, workers)
    except KeyboardInterrupt:
        print("\nInterrupted: not all files were looked at, no report.", file=sys.stderr)
        raise SystemExit(130) from None
    faults += [fault for look in looks for fault in look.faults]
    faults += count_faults(splits, dataset) + class_faults(looks, dataset) + repeated(looks)
    record = to_record(dataset, splits, looks, faults)
    show_report(record, dataset, show)
    if output:
        try:
            write_json(Path(output), record)
        except OSError as error:
            raise CrosscoopError(f"output: got {output} ({error}), expected a file that can be written.") from error
        print(f"Report: {output}")
    if faults:
        raise SystemExit(1)


@dataclass
class Look:
    """What was seen of one sample.

    Attributes:
        split: Its split.
        name: Its name.
        files: Its files, or its name if it is none of files.
        faults: What is wrong with it.
        digest: What tells its image from any other; empty if it could not be read.
        pixels: Pixels of each mask value, 256 numbers; empty without a mask that could be used.
        notes: What is peculiar about its files.
    """

    split: str
    name: str
    files: list[str]
    faults: list[Fault] = field(default_factory=list)
    digest: bytes = b""
    pixels: list[int] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


class Looks(Dataset[Look]):
    """Looks at samples, one by one, in the workers of a data loader."""

    def __init__(self, samples: Sequence[tuple[str, Sample]], num_classes: int, train_split: str) -> None:
        self.samples, self.num_classes, self.train_split = samples, num_classes, train_split

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Look:
        """What is seen of a sample. Any exception is a fault: a user's own data set may raise what it will."""
        split, sample = self.samples[index]
        look = Look(split, sample.name, files_of(sample))

        def fault(kind: str, error: Exception | str) -> None:
            message = str(error) if isinstance(error, CrosscoopError | str) else f"{sample.name}: {error!r}"
            look.faults.append(Fault(kind, [split], look.files, message))

        image = mask = None
        try:
            image = sample.image()
            look.digest = blake2b(repr(image.shape).encode() + image.tobytes()).digest()
        except Exception as error:
            fault("unusable image", error)
        try:
            mask = sample.mask()
        except Exception as error:
            fault("unusable mask", error)
            return look
        if mask is None and split == self.train_split:
            fault("no mask", f"{sample.name}: got no mask, expected one in the split to train on. Add it.")
        if image is not None:
            try:
                check_pair(sample, image, mask)
                if mask is not None:
                    check_values(sample, mask, self.num_classes)
            except Exception as error:
                fault("image and mask do not fit", error)
                return look
        if mask is not None:
            look.pixels = np.bincount(mask.ravel(), minlength=256).tolist()
        look.notes = of_sample(sample, image)
        return look


def find_splits(dataset: SegmentationDataset) -> tuple[dict[str, Sequence[Sample]], list[Fault]]:
    """The samples of the splits that are trained on or evaluated, and what is wrong with the splits as such.

    Raises:
        CrosscoopError: There is no split.
    """
    splits: dict[str, Sequence[Sample]] = {}
    faults = []
    for split in dict.fromkeys((dataset.train_split, dataset.val_split, dataset.test_split)):
        try:
            splits[split] = dataset.samples(split)
        except MissingFilesError as error:  # each will be named
            splits[split] = error.samples
        except SplitError as error:
            splits[split] = error.samples
            faults.append(Fault("split", [split], [], str(error)))
        except CrosscoopError as error:
            faults.append(Fault("split", [split], [], str(error)))
    if not any(splits.values()):
        raise CrosscoopError(faults[0].message if faults else "data.dataset: got no samples, expected some.")
    return splits, faults


def look_at(splits: Mapping[str, Sequence[Sample]], dataset: SegmentationDataset, workers: int) -> list[Look]:
    """Look at every sample, in several processes."""
    samples = [(split, sample) for split in splits for sample in splits[split]]
    looks = Looks(samples, dataset.num_classes, dataset.train_split)
    loader = DataLoader(looks, batch_size=None, num_workers=min(workers, len(samples)))
    return list(track(loader, "Looking at every file", total=len(samples), transient=True))


def count_faults(splits: Mapping[str, Sequence[Sample]], dataset: SegmentationDataset) -> list[Fault]:
    """Splits that are not as large as the official ones."""
    faults = []
    for split, samples in splits.items():
        official = dataset.official_sizes.get(split, len(samples))
        if len(samples) != official:
            message = (
                f"{split}: got {len(samples)} images, expected the official {official}. Restore the split's files."
            )
            faults.append(Fault("official count", [split], [], message))
    return faults


def class_faults(looks: Sequence[Look], dataset: SegmentationDataset) -> list[Fault]:
    """Return the fault of classes that the split to train on does not show, if any of its masks can be used."""
    split = dataset.train_split
    counted = [np.array(look.pixels) for look in looks if look.split == split and look.pixels]
    pixels = sum(counted, np.zeros(256, np.int64))
    absent = [name for name, number in zip(dataset.class_names, pixels.tolist(), strict=False) if not number]
    if not (counted and absent):
        return []
    message = (
        f"{split}: got no pixel of {shorten(absent, 8)}, expected every class in the split to train on. Add images "
        "that show them, or leave out the classes."
    )
    fault = nothing_to_learn(split, pixels, dataset.class_names)
    return [fault or Fault("classes", [split], [], message)]


def repeated(looks: Sequence[Look]) -> list[Fault]:
    """Images that are the same pixel by pixel, in one split or in two."""
    groups = defaultdict(list)
    for look in looks:
        if look.digest:
            groups[look.digest].append(look)
    faults = []
    for group in groups.values():
        splits, files = [look.split for look in group], [look.files[0] for look in group]
        if len(set(splits)) > 1:
            faults.append(overlap(splits, files))
        elif len(group) > 1:
            message = f"{shorten(files)}: got the same image {len(files)} times in {splits[0]}, expected it once."
            faults.append(Fault("twice in a split", splits[:1], files, f"{message} Remove the others."))
    return faults


def to_record(
    dataset: SegmentationDataset,
    splits: Mapping[str, Sequence[Sample]],
    looks: Sequence[Look],
    faults: Sequence[Fault],
) -> dict[str, Any]:
    """What the JSON file holds."""
    classes = list(dataset.class_names)
    record: dict[str, Any] = {"dataset": type(dataset).__name__, "class_names": classes, "splits": {}}
    notes = []
    for split, samples in splits.items():
        counted = [np.array(look.pixels) for look in looks if look.split == split and look.pixels]
        pixels = sum(counted, np.zeros(256, np.int64))
        images = sum(((each > 0).astype(int) for each in counted), np.zeros(256, np.int64))
        absent = [name for index, name in enumerate(classes) if counted and not pixels[index]]
        record["splits"][split] = {
            "images": len(samples),
            "official_images": dataset.official_sizes.get(split),
            "labelled_images": len(counted),
            "faulty_images": sum(bool(look.faults) for look in looks if look.split == split),
            "classes": {
                name: {"pixels": int(pixels[index]), "images": int(images[index])} for index, name in enumerate(classes)
            },
            "void_pixels": int(pixels[VOID]),
            "absent_classes": absent,
        }
        if absent and split != dataset.train_split:  # there it is a fault
            notes.append(f"{split} has no pixel of {', '.join(absent)}.")
    shared = Counter(name for split in splits for name in {sample.name for sample in splits[split]})
    if names := [name for name, count in shared.items() if count > 1]:
        notes.append(f"{len(names)} names are in more than one split: {shorten(names)}.")
    notes += summed_up([note for look in looks for note in look.notes])
    return {**record, "notes": notes, "faults": [asdict(fault) for fault in faults]}


def show_report(record: Mapping[str, Any], dataset: SegmentationDataset, show: int) -> None:
    """Print the report: the splits, the classes, and the faults by kind, so many of each."""
    console, splits = Console(), record["splits"]
    table = Table("split", title=f"{record['dataset']}: {dataset.num_classes} classes")
    for heading in ("images", "official", "with a usable mask", "with faults"):
        table.add_column(heading, justify="right")
    for split, row in splits.items():
        figures = (row[key] for key in ("images", "official_images", "labelled_images", "faulty_images"))
        table.add_row(split, *("-" if figure is None else str(figure) for figure in figures))
    console.print(table)

    table = Table("class", caption="per cent of the labelled pixels, and number of images")
    for split in splits:
        table.add_column(split, justify="right")
        table.add_column("images", justify="right")
    for name in record["class_names"]:
        cells = []
        for row in splits.values():
            total = sum(each["pixels"] for each in row["classes"].values())
            entry = row["classes"][name]
            cells += [percent(entry["pixels"] / total if total else None), str(entry["images"])]
        table.add_row(name, *cells)
    console.print(table)

    for note in record["notes"]:
        console.print(f"Note: {note}", markup=False, highlight=False)
    kinds = defaultdict(list)
    for fault in record["faults"]:
        kinds[fault["kind"]].append(fault["message"])
    for kind, messages in kinds.items():
        more = (
            [f"... and {len(messages) - show} more; --show {len(messages)} prints all"] if len(messages) > show else []
        )
        lines = [f"{len(messages)} x {kind}:", *(f"- {message}" for message in messages[:show]), *more]
        print("\n".join(lines))
    print(f"{len(record['faults'])} faults." if kinds else "No faults.")

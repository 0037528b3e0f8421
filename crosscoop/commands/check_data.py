"""`crosscoop check-data`: a check of every file of a data set, before you spend a training run on it."""

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

from crosscoop.data import VOID, Sample, SegmentationDataset
from crosscoop.data.check import Fault, files_of, nothing_to_learn, overlap
from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.data.peculiarities import Note, of_sample, summed_up
from crosscoop.data.pipeline import check_pair, check_values
from crosscoop.data.samples import MissingFilesError, SplitError, UnknownSplitError
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.records import percent
from crosscoop.files import note, shorten, write_json


def check_data(
    data: SegmentationLoaders, workers: int | None = None, output: str | None = None, show: int = 10
) -> None:
    """Check every image and mask of a data set's training, validation and test splits for faults.

      crosscoop check-data --config configs/voc/parts/data.yaml
      crosscoop check-data --data.dataset CamVid --data.dataset.root data/camvid --output camvid.json

    Faults are: a missing, empty or damaged file; a mask of another size than its image; a mask that is lossy, contains
    values or colours without a class, or contradicts the colours of the classes; a training image without a mask; a
    class that does not occur in the training masks; a number of images other than the official one; and the same image
    (pixel by pixel) twice in a split or in two splits. Notes report names shared by images of two splits, classes
    missing from another split, files with several pages, images that EXIF mirrors or turns upside down without their
    masks, and 16-bit images that are dark because they do not use all bits. The exit code is 0 without faults, 1 with
    faults, and 2 if there is nothing to check or an option is wrong.

    Args:
        data: The data set, usually from --config; single options override it, such as --data.dataset.root FOLDER.
        workers: Number of processes; by default one per core. 0 uses the main process.
        output: A JSON file for the report, with all faults.
        show: Maximum number of faults of a kind to print.

    Raises:
        CrosscoopError: No split was found.
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
        print("\nInterrupted: not all files were checked, no report.", file=sys.stderr)
        raise SystemExit(130) from None
    faults += [fault for look in looks for fault in look.faults]
    faults += count_faults(splits, dataset) + class_faults(looks, dataset) + repeated(looks)
    record = to_record(dataset, splits, looks, faults)
    show_report(record, dataset, show)
    if output:
        try:
            write_json(Path(output), record)
        except OSError as error:
            raise CrosscoopError(f"output: got {output} ({error}), expected a writable file.") from error
        print(f"Report: {output}")
    if faults:
        raise SystemExit(1)


@dataclass
class Look:
    """Findings about one sample.

    Attributes:
        split: Its split.
        name: Its name.
        files: Its files, or its name if it does not consist of files.
        faults: Its faults.
        digest: Hash of its image; empty if the image could not be read.
        pixels: Number of pixels of each mask value, 256 numbers; empty without a usable mask.
        notes: Peculiarities of its files.
    """

    split: str
    name: str
    files: list[str]
    faults: list[Fault] = field(default_factory=list)
    digest: bytes = b""
    pixels: list[int] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


class Looks(Dataset[Look]):
    """Findings about samples, computed one by one in the workers of a data loader."""

    def __init__(self, samples: Sequence[tuple[str, Sample]], num_classes: int, train_split: str) -> None:
        self.samples, self.num_classes, self.train_split = samples, num_classes, train_split

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Look:
        """Check a sample. Any exception is a fault: a user-defined data set may raise anything."""
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
            fault("no mask", f"{sample.name}: got no mask, expected one in the training split. Add it.")
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
    """Return the samples of the splits for training and evaluation, and the faults of the splits as such.

    Raises:
        CrosscoopError: There is no split.
    """
    splits: dict[str, Sequence[Sample]] = {}
    faults = []
    for split in dict.fromkeys((dataset.train_split, dataset.val_split, dataset.test_split)):
        try:
            splits[split] = dataset.samples(split)
        except MissingFilesError as error:  # each becomes a fault of its own
            splits[split] = error.samples
        except SplitError as error:
            splits[split] = error.samples
            faults.append(Fault("split", [split], [], str(error)))
        except CrosscoopError as error:
            if isinstance(error, UnknownSplitError) and split not in (dataset.train_split, dataset.val_split):
                note(f"There is no test split: {error} Alternatively, set test_split.")
            else:
                faults.append(Fault("split", [split], [], str(error)))
    if not any(splits.values()):
        raise CrosscoopError(faults[0].message if faults else "data.dataset: got no samples, expected some.")
    return splits, faults


def look_at(splits: Mapping[str, Sequence[Sample]], dataset: SegmentationDataset, workers: int) -> list[Look]:
    """Check every sample, in several processes."""
    samples = [(split, sample) for split in splits for sample in splits[split]]
    looks = Looks(samples, dataset.num_classes, dataset.train_split)
    loader = DataLoader(looks, batch_size=None, num_workers=min(workers, len(samples)))
    return list(track(loader, "Checking every file", total=len(samples), transient=True))


def count_faults(splits: Mapping[str, Sequence[Sample]], dataset: SegmentationDataset) -> list[Fault]:
    """Return the faults of splits whose number of images is not the official one."""
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
    """Return the fault of classes missing from the training split, if any of its masks is usable."""
    split = dataset.train_split
    counted = [np.array(look.pixels) for look in looks if look.split == split and look.pixels]
    pixels = sum(counted, np.zeros(256, np.int64))
    absent = [name for name, number in zip(dataset.class_names, pixels.tolist(), strict=False) if not number]
    if not (counted and absent):
        return []
    message = (
        f"{split}: got no pixels of {shorten(absent, 8)}, expected every class in the training split. Add images "
        "that show them, or leave out the classes."
    )
    fault = nothing_to_learn(split, pixels, dataset.class_names)
    return [fault or Fault("classes", [split], [], message)]


def repeated(looks: Sequence[Look]) -> list[Fault]:
    """Return the faults of images that are the same pixel by pixel, in one split or in two."""
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
    """Return the contents of the JSON file."""
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
            notes.append(f"{split} has no pixels of {', '.join(absent)}.")
    shared = Counter(name for split in splits for name in {sample.name for sample in splits[split]})
    if names := sorted(name for name, count in shared.items() if count > 1):
        notes.append(f"{len(names)} names are in more than one split: {shorten(names)}.")
    notes += summed_up([note for look in looks for note in look.notes])
    return {**record, "notes": notes, "faults": [asdict(fault) for fault in faults]}


def show_report(record: Mapping[str, Any], dataset: SegmentationDataset, show: int) -> None:
    """Print the report: the splits, the classes, and up to `show` faults of each kind."""
    console, splits = Console(), record["splits"]
    table = Table("split", title=f"{record['dataset']}: {dataset.num_classes} classes")
    for heading in ("images", "official", "with a usable mask", "with faults"):
        table.add_column(heading, justify="right")
    for split, row in splits.items():
        figures = (row[key] for key in ("images", "official_images", "labelled_images", "faulty_images"))
        table.add_row(split, *("-" if figure is None else str(figure) for figure in figures))
    console.print(table)

    table = Table("class", caption="share of the labelled pixels (%), and number of images")
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

    for text in record["notes"]:
        console.print(f"Note: {text}", markup=False, highlight=False)
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

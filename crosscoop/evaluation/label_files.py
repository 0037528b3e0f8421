"""Label files, which are matched with the samples of a split by their names."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from crosscoop.data.dataset import Array, Sample
from crosscoop.data.samples import by_suffix, is_image, without_suffix
from crosscoop.errors import CrosscoopError
from crosscoop.files import scan, shorten

Kind = TypeVar("Kind", bound=Sample)
Result = TypeVar("Result")


class WrongSizeError(CrosscoopError):
    """A label file whose size differs from that of its image."""


def check_size(file: Path, labels: Array, expected: Sequence[int]) -> None:
    """Check the size of labels.

    Args:
        file: The file that contains them.
        labels: `(H, W)` labels.
        expected: Height and width.

    Raises:
        WrongSizeError: The sizes differ.
    """
    if labels.shape != tuple(expected):
        sizes = f"{labels.shape[0]} x {labels.shape[1]}, expected {expected[0]} x {expected[1]}"
        raise WrongSizeError(f"{file} (got {sizes})")


def each_prediction(
    folder: Path, samples: Sequence[Kind], work: Callable[[Kind, Path], Result], title: str, remedy: str = ""
) -> Iterator[Result]:
    """Process the label file of each sample, several in parallel, and report all faults in one error at the end.

    Args:
        folder: The folder of label files, including its subfolders.
        samples: The samples, each of which needs exactly one file.
        work: Processes a sample and its file; the results are yielded in the order of the samples.
        title: The title of the progress bar.
        remedy: Text to append to the error.

    Raises:
        CrosscoopError: Files are missing or ambiguous, or `work` raised this error.
    """
    files, extra, others = match(folder, samples)
    matched = [sample for sample in samples if len(files[sample.name]) == 1]
    faults: dict[str, list[str]] = {
        "missing": [name for name, found in files.items() if not found],
        "ambiguous": [f"{name} ({' and '.join(map(str, found))})" for name, found in files.items() if len(found) > 1],
        "of another size": [],
        "unusable": [],
    }

    def attempt(sample: Kind) -> Result | CrosscoopError:
        try:
            return work(sample, files[sample.name][0])
        except CrosscoopError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in track(pool.map(attempt, matched), title, total=len(matched), transient=True):
            if isinstance(result, CrosscoopError):
                kind = "of another size" if isinstance(result, WrongSizeError) else "unusable"
                faults[kind].append(str(result).removesuffix("."))  # a list separates them by commas
            else:
                yield result
    if extra:
        some = "1 PNG file" if len(extra) == 1 else f"{len(extra)} PNG files"
        print(f"Ignored: {some} whose name does not match any image of the split: {shorten(extra)}")
    if others:
        print(f"Ignored: {by_suffix(others)}, because label files must be PNGs: {shorten(others)}")
    if any(faults.values()):
        name, example = samples[0].name, stems(samples[0])
        lines = [f"- {len(items)} {kind}: {shorten(items)}" for kind, items in faults.items() if items]
        raise CrosscoopError(
            f"{folder}: got label files that do not match the {len(samples)} images.\n" + "\n".join(lines) + "\n"
            f"Expected one PNG of class indices per image, of the same size, with a name such as {name}.png"
            + (f" or {example[-1]}.png." if len(example) > 1 else ".")
            + remedy
        )


def match(folder: Path, samples: Sequence[Sample]) -> tuple[dict[str, list[Path]], list[Path], list[Path]]:
    """Match PNG files with the samples that have the same name, or whose images have.

    Args:
        folder: The folder, including its subfolders, see `scan`.
        samples: The samples.

    Returns:
        The files of each sample by its name, the PNG files that do not match any sample, and the images in other
        formats.

    Raises:
        CrosscoopError: The folder does not exist.
    """
    if not folder.is_dir():
        raise CrosscoopError(f"predictions: got {folder}, which is not a folder, expected a folder of label PNGs.")
    owners: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        for stem in stems(sample):
            owners[stem].append(sample.name)
    files: dict[str, list[Path]] = {sample.name: [] for sample in samples}
    found = [file for file in scan(folder) if is_image(file)]
    extra = []
    for file in (each for each in found if each.suffix.lower() == ".png"):
        names = owners.get(file.stem, [])
        if len(names) > 1:  # its folders decide: take the longest name that matches
            within = f"/{file.relative_to(folder).with_suffix('').as_posix()}"
            names = sorted((name for name in names if within.endswith(f"/{name}")), key=len)
        if names:
            files[names[-1]].append(file)
        else:
            extra.append(file)
    return files, extra, [file for file in found if file.suffix.lower() != ".png"]


def stems(sample: Sample) -> list[str]:
    """Return the possible names of a sample's label file, without suffix: the sample's name and its image's."""
    own, image = sample.name.rpartition("/")[2], getattr(sample, "image_path", None)
    return list(dict.fromkeys([own, own if image is None else without_suffix(Path(Path(image).name))]))

"""Checks of a data set before training, most of which read only the files' headers."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from crosscoop.data.dataset import VOID, Sample
from crosscoop.data.images import check_mask_mode, clashes, open_image, orientation
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

THREADS = 8
"""More than there may be processor cores, because reading headers mostly waits for the disk or a file server."""

LOOKS = 4096
"""Largest number of masks that are decoded before training to find every class."""


@dataclass(frozen=True)
class Fault:
    """A fault in the data.

    Attributes:
        kind: The kind of fault, in a word or two.
        splits: The affected splits.
        files: The affected files, or the names of samples that are not files.
        message: What was found, what was expected, and the remedy.
    """

    kind: str
    splits: list[str]
    files: list[str]
    message: str


def check_headers(splits: Mapping[str, Sequence[Sample]]) -> list[Fault]:
    """Check the header of every file: it must exist, not be empty, have a valid size and kind, and be in one split.

    Images in different splits that have the same number of bytes are compared by content. Samples that are not files
    are skipped.

    Args:
        splits: Samples by split.
    """
    samples = [(split, sample) for split in splits for sample in splits[split] if hasattr(sample, "image_path")]

    def look(pair: tuple[str, Sample]) -> Fault | None:
        split, sample = pair
        try:
            check_header(sample)
        except CrosscoopError as error:
            return Fault("unusable", [split], files_of(sample), str(error))
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        looks = track(pool.map(look, samples), "Checking the data", total=len(samples), transient=True)
        faults = [fault for fault in looks if fault]
    there = {(split, path) for split, sample in samples if (path := Path(files_of(sample)[0])).is_file()}
    return faults + list(overlaps(there))


def check_header(sample: Sample) -> None:
    """Check the headers of a sample's files; a mask whose palette is suspicious is decoded.

    Args:
        sample: A sample with `image_path` and, if it is labelled, `mask_path`.

    Raises:
        CrosscoopError: A file is missing, empty or not an image, the mask cannot be used, or the sizes differ.
    """
    image_path, *mask_paths = map(Path, files_of(sample))
    with open_image(image_path) as image:
        for mask_path in mask_paths:
            with open_image(mask_path) as mask:
                check_mask_mode(mask, mask_path)
                suspicious = clashes(mask, getattr(sample, "lookup", None), getattr(sample, "legend", None))
                (width, height), expected = upright_size(mask), upright_size(image)
                if (width, height) != expected:
                    raise CrosscoopError(
                        f"{mask_path}: got {height} x {width} pixels, expected {expected[1]} x {expected[0]} as in "
                        f"{image_path}. Fix or remove the pair.{exif_hint(sample)}"
                    )
            if suspicious:
                sample.mask()


def check_classes(split: str, samples: Sequence[Sample], class_names: Sequence[str]) -> tuple[list[Fault], str]:
    """Decode randomly chosen masks of a split until every class has been found.

    Samples that are not files are skipped.

    Args:
        split: The split to train on.
        samples: Its samples.
        class_names: One name per class.

    Returns:
        Faults of the masks, and of the split if nothing can be learned from it; and a warning about classes that do
        not occur in the decoded masks, empty if there are none.
    """
    masks = [sample for sample in samples if getattr(sample, "mask_path", None)]
    order = np.random.default_rng(0).permutation(len(masks))[:LOOKS]
    pixels, faults, looked = np.zeros(VOID + 1, np.int64), list[Fault](), 0

    def count(index: int) -> NDArray[np.int64] | Fault:
        try:
            mask = masks[index].mask()
        except (OSError, ValueError) as error:  # CrosscoopError is a ValueError
            return Fault("unusable", [split], files_of(masks[index]), str(error))
        return np.bincount([] if mask is None else mask.ravel(), minlength=VOID + 1)

    starts = range(0, len(order), 2 * THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in track(starts, "Checking the classes", transient=True):
            for result in pool.map(count, order[start : start + 2 * THREADS]):
                if isinstance(result, Fault):
                    faults.append(result)
                else:
                    pixels, looked = pixels + result, looked + 1
            if pixels[: len(class_names)].all():
                break
    absent = [name for name, number in zip(class_names, pixels, strict=False) if not number]
    if not looked or not absent:
        return faults, ""
    if looked == len(samples) and (fault := nothing_to_learn(split, pixels, class_names)):
        return [*faults, fault], ""
    whole = "all" if looked == len(samples) else f"{looked} of the"
    warning = (
        f"Split {split!r}: {whole} {len(samples)} masks were checked and contain no pixels of {shorten(absent, 8)}"
    )
    return faults, f"{warning}. {'It cannot be' if len(absent) == 1 else 'They cannot be'} learned from these masks."


def nothing_to_learn(split: str, pixels: NDArray[np.int64], class_names: Sequence[str]) -> Fault | None:
    """Return the fault of a training split whose masks contain at most one of several classes, otherwise None.

    Args:
        split: The split.
        pixels: The number of pixels of each mask value, 256 numbers.
        class_names: One name per class.
    """
    seen = [name for name, number in zip(class_names, pixels, strict=False) if number]
    if len(seen) >= min(2, len(class_names)):
        return None
    found = " and ".join([*seen, *["void"] * bool(pixels[VOID])])
    message = (
        f"{split}: its masks contain {f'only {found}' if found else 'no pixels'}, expected at least two of the "
        f"{len(class_names)} classes to train on. The mask value {VOID} is void: if it represents a class, as in black "
        "and white masks, specify the value of each class (mask_values of Folder, such as [0, 255])."
    )
    return Fault("classes", [split], [], message)


def overlaps(images: Iterable[tuple[str, Path]]) -> Iterable[Fault]:
    """Yield the faults of images with the same content in different splits; only files of equal size are read.

    Args:
        images: Splits and files that exist.
    """
    groups = [sorted(images)]
    for key in (lambda path: path.stat().st_size, lambda path: _digest(path, 2**14), _digest):
        groups = [shared for group in groups for shared in grouped(group, key) if len({s for s, _ in shared}) > 1]
    for group in groups:
        yield overlap([split for split, _ in group], [str(path) for _, path in group])


def overlap(splits: Sequence[str], files: Sequence[str]) -> Fault:
    """Return the fault of files in different splits that contain the same image."""
    places = sorted((split, file) for split, file in zip(splits, files, strict=True))
    ends = [places[0], places[-1], *places[1:-1]]  # the first two are in different splits
    where = shorten(f"{file} ({split})" for split, file in ends)
    message = f"{where}: got the same image in different splits, expected it in one only. Remove it from the others."
    return Fault("in two splits", sorted(set(splits)), list(files), message)


def grouped(images: Iterable[tuple[str, Path]], key: Callable[[Path], Hashable]) -> Iterable[list[tuple[str, Path]]]:
    """Group images by a key of their files."""
    groups = defaultdict(list)
    for split, path in images:
        groups[key(path)].append((split, path))
    return groups.values()


def files_of(sample: Sample) -> list[str]:
    """Return the image file and, if there is one, the mask file of a sample; its name if it is not made of files."""
    paths = [getattr(sample, key, None) for key in ("image_path", "mask_path")]
    return [str(path) for path in paths if path is not None] or [sample.name]


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image after the rotation that its EXIF orientation requires."""
    return (image.height, image.width) if orientation(image) >= 5 else image.size


def exif_hint(sample: Sample) -> str:
    """Return the remedy if a mask does not match its image because EXIF rotates the image only, otherwise nothing."""
    files = files_of(sample)
    try:
        turned = [orientation_of(Path(file)) >= 5 for file in files]
    except CrosscoopError:  # not an image file
        return ""
    if turned != [True, False]:
        return ""
    return (
        f" EXIF rotates {files[0]} by 90 degrees, but not its mask: if the mask was drawn on the unrotated pixels, "
        f"remove the EXIF orientation of the image (exiftool -Orientation= {files[0]}), otherwise rotate the mask."
    )


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation of an image file."""
    with open_image(path) as image:
        return orientation(image)


def _digest(path: Path, size: int = -1) -> bytes:
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(size)).digest()

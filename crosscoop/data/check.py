"""Faults that a look at the files' headers shows, without decoding: what `fit` does first."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.progress import track

from crosscoop.data.dataset import Sample
from crosscoop.data.images import check_mask_mode
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

THREADS = 8
"""They wait for the disk, or for a file server, more than they compute."""

ORIENTATION = 0x0112
"""The EXIF tag."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with the data.

    Attributes:
        kind: What, in a word or two.
        splits: The splits that it is in.
        files: The files, or the names of samples that are none.
        message: What was got, what was expected, and the remedy.
    """

    kind: str
    splits: list[str]
    files: list[str]
    message: str


def check_headers(splits: Mapping[str, Sequence[Sample]]) -> list[Fault]:
    """Looks at the header of every file: it exists, is not empty, its size and kind fit, and it is in one split only.

    Of images of the same number of bytes in different splits the content is compared. Samples that are not files
    are left out.

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
    """Compares the headers of a sample's files.

    Args:
        sample: A sample with `image_path` and, if it is labelled, `mask_path`.

    Raises:
        CrosscoopError: A file is missing, empty or no image, the mask is of the wrong kind, or the sizes differ.
    """
    image_path, *mask_paths = map(Path, files_of(sample))
    with _opened(image_path) as image:
        for mask_path in mask_paths:
            with _opened(mask_path) as mask:
                check_mask_mode(mask, mask_path)
                if image.size != mask.size and _upright(image) != _upright(mask):
                    raise CrosscoopError(
                        f"{mask_path}: got {mask.height} x {mask.width} pixels, expected the {image.height} x "
                        f"{image.width} of {image_path}. Mend or remove the pair."
                    )


def overlaps(images: Iterable[tuple[str, Path]]) -> Iterable[Fault]:
    """Images of the same content in different splits; only what is equally large is read.

    Args:
        images: Splits and files that exist.
    """
    groups = [sorted(images)]
    for key in (lambda path: path.stat().st_size, lambda path: _digest(path, 2**14), _digest):
        groups = [shared for group in groups for shared in grouped(group, key) if len({s for s, _ in shared}) > 1]
    for group in groups:
        yield overlap([split for split, _ in group], [str(path) for _, path in group])


def overlap(splits: Sequence[str], files: Sequence[str]) -> Fault:
    """The fault of files that hold the same image, in different splits."""
    places = sorted((split, file) for split, file in zip(splits, files, strict=True))
    ends = [places[0], places[-1], *places[1:-1]]  # of two splits, whatever is left out
    where = shorten(f"{file} ({split})" for split, file in ends)
    message = f"{where}: got the same image in different splits, expected it in one only. Remove it from the others."
    return Fault("in two splits", sorted(set(splits)), list(files), message)


def grouped(images: Iterable[tuple[str, Path]], key: Callable[[Path], Hashable]) -> Iterable[list[tuple[str, Path]]]:
    """Images in groups of the same key."""
    groups = defaultdict(list)
    for split, path in images:
        groups[key(path)].append((split, path))
    return groups.values()


def files_of(sample: Sample) -> list[str]:
    """The image file and, if there is one, the mask file of a sample; its name if it is none of files."""
    paths = [getattr(sample, key, None) for key in ("image_path", "mask_path")]
    return [str(path) for path in paths if path is not None] or [sample.name]


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more
        found = f"{path.stat().st_size} bytes that are no image" if path.is_file() else "no such file"
        raise CrosscoopError(f"{path}: got {found} ({error}), expected an image; restore the file") from error


def _upright(image: Image.Image) -> tuple[int, int]:
    """The size after the turn that the EXIF orientation asks for."""
    turned = image.getexif().get(ORIENTATION, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def _digest(path: Path, size: int = -1) -> bytes:
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(size)).digest()

"""Samples stored as files, and the lists and folders that define them."""

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from crosscoop.data.dataset import Array, Legend
from crosscoop.data.images import PngRows, png_rows, read_image, read_mask
from crosscoop.errors import CrosscoopError
from crosscoop.files import note, scan, shorten

NOT_TO_SEGMENT = frozenset(
    ("BUFR", "CUR", "EPS", "FLI", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF", "WMF")
)
"""PIL's formats for documents, films, icons and brushes, and those that it can only identify."""


class SplitError(CrosscoopError):
    """A split that cannot be used as it is.

    Args:
        message: What is wrong with it.
        samples: Its samples nevertheless, for callers that check each of them.
    """

    def __init__(self, message: str, samples: Sequence["FileSample"]) -> None:
        super().__init__(message)
        self.samples = samples

    def __reduce__(self) -> Any:
        """Return both arguments, so that the error can be sent between processes."""
        return type(self), (str(self), self.samples)


class UnknownSplitError(CrosscoopError):
    """A split that a data set does not have."""


class MissingFilesError(SplitError):
    """A split with missing files."""


@dataclass(frozen=True, slots=True)
class FileSample:
    """A sample whose image and mask are files.

    Attributes:
        name: The sample's name, unique in its split.
        image_path: The image file, see `read_image`.
        mask_path: The mask file, see `read_mask`; None for unlabelled samples.
        num_classes: The number of classes that the mask may contain.
        lookup: 256 uint8 entries that map the mask file's values to class indices, see `lookup_table`; None if both
            are the same.
        legend: The colours of the classes in the mask file; None if they are unknown.
    """

    name: str
    image_path: Path
    mask_path: Path | None
    num_classes: int
    lookup: Array | None = field(default=None, repr=False, compare=False)
    legend: Legend | None = field(default=None, repr=False, compare=False)

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB."""
        return read_image(self.image_path)

    def mask(self) -> Array | None:
        """Return the mask: `(H, W)` uint8 class indices, `VOID` at unlabelled pixels; None for unlabelled samples."""
        return None if self.mask_path is None else self.decode_mask(self.mask_path)

    def image_rows(self) -> Array | PngRows:
        """Return the image, as rows to be decoded if possible."""
        return png_rows(self.image_path, partial(read_image, self.image_path), 3)

    def mask_rows(self) -> Array | PngRows | None:
        """Return the mask, as rows to be decoded if possible."""
        return None if self.mask_path is None else png_rows(self.mask_path, partial(self.decode_mask, self.mask_path))

    def decode_mask(self, path: Path, content: bytes | None = None) -> Array:
        """Return the mask in a file, see `read_mask`."""
        return read_mask(path, self.num_classes, self.lookup, self.legend, content)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the image files that PIL can read."""
    Image.init()
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in NOT_TO_SEGMENT)


def is_image(path: Path) -> bool:
    """Return whether PIL can read a file, judging by its suffix."""
    return path.suffix.lower() in image_suffixes()


def without_suffix(path: Path) -> str:
    """Return a path as a name, with `/` and without the suffix of an image (`2007.1` stays `2007.1`)."""
    return (path.with_suffix("") if is_image(path) else path).as_posix()


def images_below(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the images below a folder, see `scan`, and print a note about other files.

    Args:
        folder: The folder.
        pattern: A glob pattern relative to it.
    """
    found = scan(folder, pattern)
    images = [path for path in found if is_image(path)]
    if others := [path for path in found if not is_image(path)]:
        note(f"{folder}: skipped {by_suffix(others)}, which PIL does not read as images.")
    return images


def by_suffix(files: Iterable[Path]) -> str:
    """Return the number of files by suffix as text: `4 files (3 .heic, 1 .md)`."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in files)
    kinds = shorten((f"{count} {suffix}" for suffix, count in counts.most_common()), 5)
    return f"{counts.total()} file{'' if counts.total() == 1 else 's'} ({kinds})"


def read_list(path: Path) -> list[str]:
    """Return the lines of a list file, without surrounding blanks and without empty lines.

    Args:
        path: A text file with one sample per line, in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        CrosscoopError: The file is missing, empty, or not text.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CrosscoopError(
            f"{path}: got an unreadable list ({error}), expected a text file (UTF-8) with one sample per line. "
            "Check the data set's root and split."
        ) from error
    lines = [line for raw in text.splitlines() if (line := raw.strip())]
    if not lines:
        raise CrosscoopError(f"{path}: got an empty list, expected one sample per line. Restore the file.")
    return lines


def split_line(line: str, folder: Path, prefix: str = "") -> list[str]:
    """Split a line of a list into file names.

    Names are separated by a tab, blanks, a comma or a semicolon, and may contain the backslashes of Windows. As a name
    may itself contain any of these, the split whose files exist is chosen.

    Args:
        line: The line.
        folder: The folder that the names are relative to.
        prefix: A prefix to remove from every name that has it.

    Returns:
        The names; more than two only if the line has another form.
    """
    readings = [
        [name.removeprefix(prefix) for name in names]
        for text in dict.fromkeys((line, line.replace("\\", "/")))
        for names in _readings(text)
    ]
    there = (names for names in readings if len(names) <= 2 and all((folder / name).is_file() for name in names))
    pairs = (names for names in reversed(readings) if len(names) == 2)
    return next(there, None) or next(pairs, None) or readings[0]


def _readings(line: str) -> Iterator[list[str]]:
    """Yield the ways to split a line, the likeliest first; the last one is the complete line."""
    if "\t" in line:
        yield [name.strip() for name in line.split("\t")]
    yield line.split()
    for separator in ",;":
        yield [name.strip(' "') for name in line.split(separator)]
    yield [line]


def read_pairs(path: Path, root: Path, prefix: str = "") -> list[tuple[Path, Path | None]]:
    """Read image and mask files from a list with "image mask" or, for unlabelled samples, "image" per line.

    Args:
        path: The list file; see `split_line` for the separators of names.
        root: The folder that the names are relative to; files outside it are rejected.
        prefix: A prefix to remove from every name that has it.

    Raises:
        CrosscoopError: The list cannot be read, or a line has another form or refers to a file outside `root`.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for line in read_list(path):
        names = [Path(name) for name in split_line(line, root, prefix)]
        if len(names) > 2 or any(name.is_absolute() or ".." in name.parts for name in names):
            raise CrosscoopError(
                f'{path}: got the line "{line}", expected "image mask" or "image", relative to {root} and '
                "inside it. Correct the line (a tab separates names that contain blanks)."
            )
        pairs.append((root / names[0], root / names[1] if len(names) == 2 else None))
    return pairs


def check_samples(samples: Sequence[FileSample], source: Path) -> Sequence[FileSample]:
    """Return the samples if their names are unique and their files exist, so that faults are reported early.

    Args:
        samples: The samples of a split.
        source: The list or folder that defines them, for the message.

    Raises:
        SplitError: A name occurs twice.
        MissingFilesError: A file is missing.
    """
    doubled = [name for name, count in Counter(sample.name for sample in samples).items() if count > 1]
    if doubled:
        raise SplitError(
            f"{source}: got {shorten(doubled)} more than once, expected each name once. Remove the duplicates.", samples
        )
    files = [path for sample in samples for path in (sample.image_path, sample.mask_path) if path is not None]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise MissingFilesError(
            f"{source}: {len(missing)} of its {len(files)} images and masks are missing: {shorten(missing)}, "
            "expected all of them. Restore them, or list only existing files.",
            samples,
        )
    return samples

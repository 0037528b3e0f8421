"""Samples that lie on disk, and the lists and folders that name them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosscoop.data.dataset import Array, Legend
from crosscoop.data.images import read_image, read_mask
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class SplitError(CrosscoopError):
    """A split that cannot be used as it is.

    Args:
        message: What is wrong with it.
        samples: What it consists of nevertheless, for who looks at each sample.
    """

    def __init__(self, message: str, samples: Sequence["FileSample"]) -> None:
        super().__init__(message)
        self.samples = samples

    def __reduce__(self) -> Any:
        """What it is made of again in another process."""
        return type(self), (str(self), self.samples)


class MissingFilesError(SplitError):
    """Files of a split are not there."""


@dataclass(frozen=True, slots=True)
class FileSample:
    """A sample whose image and mask are files.

    Attributes:
        name: The sample's name, unique in its split.
        image_path: The image file, see `read_image`.
        mask_path: The mask file, see `read_mask`; None for unlabelled samples.
        num_classes: The number of classes that the mask may show.
        lookup: 256 uint8 entries, from the mask file's value to the class index, see `lookup_table`; None
            where they are the same.
        legend: The colours of the classes in the mask file; None where they are not known.
    """

    name: str
    image_path: Path
    mask_path: Path | None
    num_classes: int
    lookup: Array | None = field(default=None, repr=False, compare=False)
    legend: Legend | None = field(default=None, repr=False, compare=False)

    def image(self) -> Array:
        """The image: `(H, W, 3)` uint8 RGB."""
        return read_image(self.image_path)

    def mask(self) -> Array | None:
        """The mask: `(H, W)` uint8 class indices, `VOID` without label; None for unlabelled samples."""
        path = self.mask_path
        return None if path is None else read_mask(path, self.num_classes, self.lookup, self.legend)


def read_list(path: Path) -> list[str]:
    """The lines of a list file, without blanks around them and without empty lines.

    Args:
        path: A UTF-8 text file with one sample per line.

    Raises:
        CrosscoopError: The file is missing, empty, or no text.
    """
    try:
        lines = [line for raw in path.read_text("utf-8-sig").splitlines() if (line := raw.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise CrosscoopError(
            f"{path}: got no readable list ({error}), expected a text file with one sample per line; "
            "check the data set's root and split"
        ) from error
    if not lines:
        raise CrosscoopError(f"{path}: got an empty list, expected one sample per line; restore the file")
    return lines


def read_pairs(path: Path, root: Path, prefix: str = "") -> list[tuple[Path, Path | None]]:
    """Image and mask files from a list with "image mask" or, for unlabelled samples, "image" per line.

    Args:
        path: The list file; its fields are separated by blanks, or by one tab where names hold blanks.
        root: The folder that the names are relative to and may not leave.
        prefix: A prefix to strip from every name that has it.

    Raises:
        CrosscoopError: The list cannot be read, or a line is of another form or leads out of `root`.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for line in read_list(path):
        names = [Path(name.removeprefix(prefix)) for name in line.split("\t" if "\t" in line else None)]
        if len(names) > 2 or any(name.is_absolute() or ".." in name.parts for name in names):
            raise CrosscoopError(
                f'{path}: got the line "{line}", expected "image mask" or "image", relative to {root} and '
                "inside it; correct the line (a tab separates names that hold blanks)"
            )
        pairs.append((root / names[0], root / names[1] if len(names) == 2 else None))
    return pairs


def check_samples(samples: Sequence[FileSample], source: Path) -> Sequence[FileSample]:
    """Gives the samples back if their names are unique and their files exist; better now than hours later.

    Args:
        samples: The samples of a split.
        source: Where they were found, for the message.

    Raises:
        SplitError: A name occurs twice.
        MissingFilesError: A file is missing.
    """
    doubled = [name for name, count in Counter(sample.name for sample in samples).items() if count > 1]
    if doubled:
        raise SplitError(
            f"{source}: got {shorten(doubled)} more than once, expected each name once; remove the others", samples
        )
    files = [path for sample in samples for path in (sample.image_path, sample.mask_path) if path is not None]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise MissingFilesError(
            f"{source}: {len(missing)} of its {len(files)} images and masks are missing: {shorten(missing)}, "
            "expected all of them; restore them, or list only what is there",
            samples,
        )
    return samples

"""Samples that lie on disk: image files, mask files and the lists that name them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from crosscoop.data.dataset import VOID, Array, Color
from crosscoop.errors import CrosscoopError

MODES = {
    "1": " (black and white)",
    "RGB": " (colours)",
    "RGBA": " (colours)",
    **dict.fromkeys(["I;16", "I;16B", "I;16L"], " (16 bits)"),
}
"""PIL's modes in words, where they need some."""

UNKNOWN = 254
"""A lookup table gives it for unknown values; `read_mask` refuses it, up to 254 classes."""


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
    """

    name: str
    image_path: Path
    mask_path: Path | None
    num_classes: int
    lookup: Array | None = field(default=None, repr=False, compare=False)

    def image(self) -> Array:
        """The image: `(H, W, 3)` uint8 RGB."""
        return read_image(self.image_path)

    def mask(self) -> Array | None:
        """The mask: `(H, W)` uint8 class indices, `VOID` without label; None for unlabelled samples."""
        return None if self.mask_path is None else read_mask(self.mask_path, self.num_classes, self.lookup)


def read_image(path: Path) -> Array:
    """Reads an image as `(H, W, 3)` uint8 RGB.

    Grey, palette and CMYK images are converted, transparency is dropped, 16 bits become their high byte, and
    the EXIF orientation is applied. PIL reads, not OpenCV, which returns a truncated PNG as if it were whole.

    Args:
        path: Any file that PIL can read.

    Raises:
        CrosscoopError: The file is missing, empty, damaged, or deeper than 16 bits.
    """
    return to_rgb(_decode(path), str(path))


def to_rgb(image: Image.Image, name: str) -> Array:
    """A PIL image as `(H, W, 3)` uint8 RGB, see `read_image`.

    Args:
        image: The image; its orientation is taken as it is.
        name: What to call it in a message.

    Raises:
        CrosscoopError: The image is deeper than 16 bits, or of a colour space that PIL cannot convert.
    """
    if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would clip these at 255
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise CrosscoopError(
                f"{name}: got pixels of 32 bits (mode {image.mode}), expected 8 or 16; save them as 8-bit RGB"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # it is dropped anyway; PIL would warn
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:  # a colour space that PIL cannot convert, such as LAB
        raise CrosscoopError(
            f"{name}: got mode {image.mode}, expected a colour or grey image; save it as RGB"
        ) from error


def read_mask(path: Path, num_classes: int, lookup: Array | None = None) -> Array:
    """Reads a mask as `(H, W)` uint8 class indices; of a palette image the indices, never the colours.

    Args:
        path: A lossless single-channel 8-bit image (mode L or P).
        num_classes: The number of classes.
        lookup: 256 uint8 entries, from the file's value to the class index, see `lookup_table`.

    Raises:
        CrosscoopError: The file is missing, empty, damaged, of another kind, or holds a value that is (after
            the lookup) neither a class index nor `VOID`.
    """
    image = _decode(path)
    check_mask_mode(image, path)
    values = np.array(image)
    mask = values if lookup is None else lookup[values]
    wrong = (mask >= num_classes) & (mask != VOID)
    if wrong.any():
        raise CrosscoopError(
            f"{path}: got the mask values {shorten(np.unique(values[wrong]), 8)}, expected only values that "
            f"stand for one of the {num_classes} classes or void ({VOID}); correct the file or the classes"
        )
    return mask


def check_mask_mode(image: Image.Image, path: Path) -> None:
    """Refuses what is no lossless single-channel 8-bit image; its header is enough to tell.

    Args:
        image: The opened image.
        path: Its file, for the message.

    Raises:
        CrosscoopError: It is of another kind.
    """
    if image.mode not in ("L", "P") or image.format == "JPEG":
        raise CrosscoopError(
            f"{path}: got a mask of mode {image.mode}{MODES.get(image.mode, '')} in format {image.format}, expected "
            "one lossless 8-bit channel (mode L or P); save the class indices as a grey or palette PNG"
        )


def write_mask(path: Path, mask: Array, palette: Sequence[Color]) -> None:
    """Writes a mask as a palette PNG, whole or not at all.

    Args:
        path: The file to write.
        mask: `(H, W)` uint8 class indices and `VOID`.
        palette: One RGB colour per class; void is VOC's cream unless the palette has 256 entries.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[VOID] = (224, 224, 192)
    colors[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())  # turns mode L into mode P, the values stay
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes otherwise.

    Args:
        path: The file that appears whole or not at all; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{token_hex(4)}{path.suffix}")  # machines that share a folder share pids
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno:  # PIL's own have none
            error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def lookup_table(indices: Mapping[int, int]) -> Array:
    """256 uint8 entries from mask values to class indices; `VOID` stays unless named, the rest is `UNKNOWN`.

    Args:
        indices: The class index, or `VOID`, of each mask value.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[VOID] = VOID
    table[list(indices)] = list(indices.values())
    return table


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


def shorten(items: Iterable[object], count: int = 3) -> str:
    """The first items as text, and how many more there are.

    Args:
        items: What to name, in order.
        count: How many to name.
    """
    texts = [str(item) for item in items]
    more = len(texts) - count
    return ", ".join(texts[:count]) + (f" and {more} more" if more > 0 else "")


def _decode(path: Path) -> Image.Image:
    """The decoded image, upright according to its EXIF orientation."""
    if not path.is_file():
        raise CrosscoopError(
            f"{path}: got no such file, expected an image; check the data set's root, or restore the file"
        )
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise CrosscoopError(
            f"{path}: got {_size(path)} bytes that do not decode ({error}), expected a whole image; restore the file"
        ) from error


def _size(path: Path) -> int:
    """The size of a file in bytes, 0 if it has vanished meanwhile."""
    return path.stat().st_size if path.is_file() else 0

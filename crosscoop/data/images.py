"""Image and mask files, read and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Color
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing, shorten

MODES = {
    "1": " (black and white)",
    "RGB": " (colours)",
    "RGBA": " (colours)",
    **dict.fromkeys(["I;16", "I;16B", "I;16L"], " (16 bits)"),
}
"""PIL's modes in words, where they need some."""

UNKNOWN = 254
"""A lookup table gives it for unknown values; `read_mask` refuses it, up to 254 classes."""


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
    colors[VOID] = VOID_COLOR
    colors[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())  # turns mode L into mode P, the values stay
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def lookup_table(indices: Mapping[int, int]) -> Array:
    """256 uint8 entries from mask values to class indices; `VOID` stays unless named, the rest is `UNKNOWN`.

    Args:
        indices: The class index, or `VOID`, of each mask value.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[VOID] = VOID
    table[list(indices)] = list(indices.values())
    return table


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

"""Reading and writing of image and mask files."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Color, Legend
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing, shorten

LOSSY = ("JPEG", "MPO")
"""Formats whose compression changes values."""

ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
"""How a PNG file begins: with its signature and the head of its first chunk, which contains width and height."""

PECULIAR = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp", b"acTL")
"""What a PNG file contains that may state an orientation, also after the pixels, or has more than one image."""

UNKNOWN = 254
"""The entry of a lookup table for unknown values, which `read_mask` rejects; it limits a data set to 254 classes."""


@dataclass(frozen=True, slots=True)
class PngRows:
    """The pixels of a PNG file, decoded when they are indexed, and only down to the last row that is required.

    Attributes:
        content: The file's bytes.
        read: Decodes such bytes.
        shape: The shape of the decoded array.
    """

    content: bytes
    read: Callable[[bytes], Array]
    shape: tuple[int, ...]

    def __getitem__(self, window: tuple[slice, slice]) -> Array:
        """Return rows and columns; the end of the rows must be given."""
        header = self.content[12:20] + int(window[0].stop).to_bytes(4, "big") + self.content[24:29]
        return self.read(self.content[:12] + header + crc32(header).to_bytes(4, "big") + self.content[33:])[window]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return all pixels, for `np.asarray`."""
        return self.read(self.content)


def png_rows(path: Path, read: Callable[[bytes | None], Array], *channels: int) -> Array | PngRows:
    """Return what is read from a file, as `PngRows` if its pixels can be decoded from the top.

    Args:
        path: The file.
        read: Decodes the file's bytes, and reports if there is no file.
        *channels: What the array's shape has in addition to height and width.

    Raises:
        CrosscoopError: `read` rejects the file.
    """
    content = None
    with suppress(OSError):  # which `read` reports
        content = path.read_bytes()
    if content is None or content[28:29] != b"\0" or not _is_plain_png(content):  # interlaced
        return read(content)
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return PngRows(content, read, (height, width, *channels))


def read_image(path: Path, content: bytes | None = None) -> Array:
    """Read an image as `(H, W, 3)` uint8 RGB.

    Grey, palette and CMYK images are converted, transparency is dropped, 16 bits are reduced to their high byte, and
    the EXIF orientation is applied.

    Args:
        path: Any file that PIL can read.
        content: The file's bytes, if they have already been read.

    Raises:
        CrosscoopError: The file is missing, empty, damaged, or deeper than 16 bits.
    """
    with open_image(path, content) as image:
        pixels = _decode_fast(image, path, content)
        return to_rgb(_load(image, path), str(path)) if pixels is None else pixels


def _decode_fast(image: ImageFile.ImageFile, path: Path, content: bytes | None) -> Array | None:
    """Return the pixels of an upright RGB image by a faster decoder than PIL, or None if PIL has to decode it.

    The pixels are the same. What the decoder rejects, such as a truncated file, is left to PIL and its errors; OpenCV
    would return it as if it were complete.
    """
    if image.mode == "RGB" and image.format in ("JPEG", "PNG") and orientation(image) == 1:
        with suppress(Exception):
            content = path.read_bytes() if content is None else content
            if image.format == "JPEG":
                import torch
                from torchvision.io import decode_jpeg

                channels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
                pixels: Array = channels.permute(1, 2, 0).numpy()
                return pixels
            if (load := _libspng()) and not is_deep(image) and _is_plain_png(content):
                return load(content)[..., :3]  # without transparency
    return None


@cache
def _libspng() -> Callable[[bytes], Array] | None:
    """Return the decoder of pyspng, an optional dependency."""
    return import_module("pyspng").load if find_spec("pyspng") else None


def _is_plain_png(content: bytes) -> bool:
    """Return whether a file is an undamaged PNG, upright and with one image."""
    metadata, position, view = b"", 8, memoryview(content)
    while content.startswith(PNG) and position < len(content):
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False  # libspng would not notice, and PIL only in what it decodes
        if kind == b"IEND":
            return not any(word in metadata for word in PECULIAR)
        metadata += content[position:end] if kind != b"IDAT" else b""
        position = end
    return False


def to_rgb(image: Image.Image, name: str) -> Array:
    """Convert a PIL image to `(H, W, 3)` uint8 RGB, see `read_image`.

    Args:
        image: The image; its orientation is not changed.
        name: Its name in error messages.

    Raises:
        CrosscoopError: The image is deeper than 16 bits, or has a colour space that PIL cannot convert.
    """
    if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would clip these at 255
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise CrosscoopError(
                f"{name}: got 32-bit pixels (mode {image.mode}), expected 8 or 16 bits. Save it as 8-bit RGB."
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # it is dropped anyway; PIL would warn
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:  # a colour space that PIL cannot convert, such as LAB
        raise CrosscoopError(
            f"{name}: got mode {image.mode}, expected a colour or grey image. Save it as RGB."
        ) from error


def read_mask(
    path: Path,
    num_classes: int,
    lookup: Array | None = None,
    legend: Legend | None = None,
    content: bytes | None = None,
) -> Array:
    """Read a mask as `(H, W)` uint8 class indices.

    Classes are read from the values of grey files of 1 to 16 bits (including those stored as RGB with equal channels)
    and from the indices of palette files. Other colours are looked up in the legend. A file is rejected if one of its
    values has the colour of another class in the legend, for example after a tool has renumbered the palette.

    Args:
        path: A lossless image.
        num_classes: The number of classes.
        lookup: 256 uint8 entries that map the file's values to class indices, see `lookup_table`.
        legend: The colours of the classes; without it, only values are read.
        content: The file's bytes, if they have already been read.

    Raises:
        CrosscoopError: The file is missing, empty, damaged or lossy, contains a value or colour that is neither a
            class nor `VOID`, or contradicts the legend.
    """
    with open_image(path, content) as opened:
        check_mask_mode(opened, path)
        largest, image = _largest(opened), _load(opened, path)
    if image.mode in ("LA", "RGBA") and image.getextrema()[-1] != (255, 255):
        raise CrosscoopError(
            f"{path}: got transparent pixels, expected opaque ones. Save the mask without an alpha channel."
        )
    values = None if legend and legend.only else _values(image, largest)
    if values is None:
        return _by_color(image, path, legend)
    if values.min(initial=0) < 0 or values.max(initial=0) > VOID:
        raise _unknown(path, values[(values < 0) | (values > VOID)], num_classes)
    values = values.astype(np.uint8)
    if image.mode == "1" and lookup is not None and lookup[1] == UNKNOWN and lookup[VOID] < num_classes:
        values *= VOID  # white is 255 for mask_values [0, 255]
    mask = values if lookup is None else lookup.take(values)
    wrong = (mask >= num_classes) & (mask != VOID)
    if wrong.any():
        raise _unknown(path, values[wrong], num_classes)
    for value, (own, other) in clashes(image, lookup, legend).items():
        if legend and (values == value).any():
            raise CrosscoopError(
                f"{path}: its value {value} stands for {legend.name(own)}, but has the colour of {legend.name(other)}, "
                "expected both to be the same class. A tool may have renumbered its palette. Restore the original "
                "file, correct the palette of the data set, or read the colours instead (mask_colors of Folder)."
            )
    return mask


def check_mask_mode(image: ImageFile.ImageFile, path: Path) -> None:
    """Reject a file that cannot be a lossless mask; the header is sufficient.

    Args:
        image: The opened image, not decoded yet.
        path: Its file, for the message.

    Raises:
        CrosscoopError: The file is lossy, or its pixels cannot represent classes.
    """
    lossy = image.format in LOSSY or image.info.get("compression") == "jpeg"
    colors = image.mode in ("LA", "RGB", "RGBA")
    deep = colors and is_deep(image)  # PIL would drop the low bytes
    if lossy or deep or not (colors or image.mode in ("1", "L", "P") or image.mode.startswith("I")):
        kind = "lossy" if lossy else "16 bits per channel" if deep else f"mode {image.mode}"
        raise CrosscoopError(
            f"{path}: got a mask in format {image.format} ({kind}), expected a lossless image of class indices or "
            "colours. Save the class indices as a grey or palette PNG."
        )


def clashes(image: Image.Image, lookup: Array | None, legend: Legend | None) -> dict[int, tuple[int, int]]:
    """Find values, used or not, that have the colour of another class in a mask; the header is sufficient.

    Only the first value of each colour is considered, because unused palette entries repeat another one, mostly black.
    Black may also represent any void value. A palette of grey levels does not represent classes.

    Args:
        image: The opened mask: with a palette, or grey levels as RGB.
        lookup: See `read_mask`.
        legend: The colours of the classes.

    Returns:
        For each value, the class index (or `VOID`) that it stands for, and the class index whose colour it has.
    """
    if legend is None or legend.only or image.mode not in ("P", "RGB", "RGBA"):
        return {}
    colors = levels = [(value, value, value) for value in range(256)]
    if image.mode == "P":
        palette = image.palette
        plain = palette and palette.mode == "RGB" and palette.rawmode in (None, "RGB")
        flat = list(palette.palette) if palette and plain else image.getpalette() or []  # which decodes the image
        colors = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        if colors == levels[: len(colors)]:
            return {}
    first = {color: value for value, color in reversed(list(enumerate(colors)))}
    found = {}
    for color in sorted(legend.indices.keys() & first.keys(), key=first.__getitem__):
        value, other = first[color], legend.indices[color]
        own = value if lookup is None else int(lookup[value])
        if own != other and (own < len(legend.class_names) or (own == VOID and any(color))):
            found[value] = own, other
    return found


def _values(image: Image.Image, largest: int | None) -> NDArray[Any] | None:
    """Return the values of a mask `(H, W)` as stored in its file, or None for a mask in colours.

    Args:
        image: The decoded mask.
        largest: See `_largest`.
    """
    values = np.asarray(image)
    if values.ndim == 3:
        if image.mode != "LA" and (values[..., :1] != values[..., 1:3]).any():
            return None
        values = values[..., 0]
    if largest is not None:  # PIL has stretched them: round to the nearest integer
        white = 0xFFFF if image.mode.startswith("I") else 0xFF
        values = (values.astype(np.int64) * largest + white // 2) // white
    return values


def _by_color(image: Image.Image, path: Path, legend: Legend | None) -> Array:
    """Return the class indices `(H, W)` of a mask in colours.

    Raises:
        CrosscoopError: The colours are unknown, or a colour does not belong to any class.
    """
    if legend is None:
        raise CrosscoopError(
            f"{path}: got a mask in colours (mode {image.mode}), expected class indices. Save them as a grey or "
            "palette PNG, or specify the colours of the classes (palette of Folder)."
        )
    if image.mode.startswith("I"):
        raise CrosscoopError(f"{path}: got a mask of mode {image.mode}, expected colours. Set mask_colors to false.")
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.uint32), 2, 0)
    pixels = red << 16 | green << 8 | blue
    known = {red << 16 | green << 8 | blue: index for (red, green, blue), index in sorted(legend.indices.items())}
    codes = np.array(list(known), np.uint32)
    nearest = np.searchsorted(codes[:-1], pixels)
    wrong = codes[nearest] != pixels
    if wrong.any():
        colors = [(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(pixels[wrong]).tolist()]
        raise CrosscoopError(
            f"{path}: got the colours {shorten(colors)}, expected only those of the classes and void. Correct the "
            "file, the palette of the data set, or the colours of void."
        )
    mask: Array = np.array(list(known.values()), np.uint8)[nearest]
    return mask


def _unknown(path: Path, values: NDArray[Any], num_classes: int) -> CrosscoopError:
    """Return the error for values that do not stand for a class."""
    return CrosscoopError(
        f"{path}: got the mask values {shorten(np.unique(values), 8)}, expected only values that stand for one of "
        f"the {num_classes} classes or void ({VOID}). Correct the file or the classes, or map the values "
        "(mask_values of Folder, lookup of FileSample)."
    )


def write_mask(path: Path, mask: Array, palette: Sequence[Color]) -> None:
    """Write a mask as a palette PNG, completely or not at all.

    Args:
        path: The file to write.
        mask: `(H, W)` uint8 class indices and `VOID`.
        palette: One RGB colour per class; void is VOC's cream unless the palette has 256 entries.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[VOID] = VOID_COLOR
    colors[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())  # turns mode L into mode P and keeps the values
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def lookup_table(indices: Mapping[int, int]) -> Array:
    """Return 256 uint8 class indices by mask value; `VOID` is kept unless specified, other values are `UNKNOWN`.

    Args:
        indices: The class index, or `VOID`, of each mask value.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[VOID] = VOID
    table[list(indices)] = list(indices.values())
    return table


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image: 1 is upright, 3 upside down, 5 to 8 a quarter turn.

    EXIF data after the pixels of a PNG, which few programs write, is ignored.
    """
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
        return 1  # PIL would have to decode it first
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def open_image(path: Path, content: bytes | None = None) -> ImageFile.ImageFile:
    """Open an image and read only its header; use it as a context manager.

    Args:
        path: The file.
        content: The file's bytes, if they have already been read.

    Raises:
        CrosscoopError: The file is missing, empty, or not an image.
    """
    if not path.is_file():
        raise CrosscoopError(
            f"{path}: file not found, expected an image. Check the data set's root, or restore the file."
        )
    try:
        return Image.open(path if content is None else BytesIO(content))
    except UnidentifiedImageError as error:
        raise _damaged(path, "unknown format") from error
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise _damaged(path, error) from error


def _load(image: Image.Image, path: Path) -> Image.Image:
    """Return the decoded image, upright according to its EXIF orientation."""
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # so do its decoders
        raise _damaged(path, error) from error
    return image


def _damaged(path: Path, error: Exception | str) -> CrosscoopError:
    size = path.stat().st_size if path.is_file() else 0  # it may have been deleted meanwhile
    return CrosscoopError(
        f"{path}: got {size} bytes that cannot be decoded ({error}), expected a complete image. Restore the file."
    )


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image has 16 bits per channel."""
    return image.mode.startswith("I") or ";16" in str(_raw(image)[1])


def _raw(image: ImageFile.ImageFile) -> tuple[str, Any, Any]:
    """Return PIL's decoder of an opened image with its first and last argument, which describe the stored pixels."""
    if not image.tile:
        return "", "", ""
    decoder, arguments = image.tile[0][0], image.tile[0][3]
    return (decoder, arguments[0], arguments[-1]) if isinstance(arguments, tuple) else (decoder, arguments, arguments)


def _largest(image: ImageFile.ImageFile) -> int | None:
    """Return the largest value of an opened grey file of few bits, which PIL stretches to white; otherwise None."""
    decoder, form, maximum = _raw(image)
    return int(maximum) if decoder in ("ppm", "ppm_plain") else {"L;2": 3, "L;4": 15}.get(str(form)[:3])

"""Peculiarities of readable files that a user may not expect."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from crosscoop.data.check import files_of, upright_size
from crosscoop.data.dataset import VOID, Array, Sample
from crosscoop.data.images import is_deep, open_image, orientation, read_image
from crosscoop.files import shorten

Note = tuple[Path, str]
"""A file and the description of a peculiarity, which does not contain what differs between files."""


def of_sample(sample: Sample, image: Array | None = None) -> list[Note]:
    """Return the peculiarities of a sample's files; none if they cannot be read.

    Args:
        sample: The sample.
        image: Its image, if it has already been read.
    """
    image_path, *mask_paths = map(Path, files_of(sample))
    notes = of_image(image_path, image)
    for mask_path in mask_paths:
        try:
            notes += _pages(mask_path)
            with open_image(image_path) as photo, open_image(mask_path) as mask:
                turn = orientation(photo)
                if turn != orientation(mask) and photo.size == upright_size(mask):
                    text = (
                        f"are rotated or mirrored by EXIF (orientation {turn}), but their masks are not: do they match?"
                    )
                    notes.append((image_path, text))
        except (OSError, ValueError):  # CrosscoopError is a ValueError
            continue
    return notes


def of_image(path: Path, image: Array | None = None) -> list[Note]:
    """Return the peculiarities of an image file; none if it cannot be read.

    Args:
        path: The file.
        image: The image, if it has already been read.
    """
    try:
        notes = _pages(path)
        with open_image(path) as opened:
            deep = is_deep(opened)
        top = int((read_image(path) if image is None else image).max(initial=0)) if deep else VOID
    except (OSError, ValueError):
        return []
    if top < 64:
        text = (
            f"use only the lower {8 + top.bit_length()} of 16 bits and appear nearly black, because the upper 8 are "
            "read: scale them to the full range"
        )
        notes.append((path, text))
    return notes


def summed_up(notes: Iterable[Note]) -> list[str]:
    """Return one line per peculiarity, with its files.

    Args:
        notes: The peculiarities of any number of files.
    """
    files = defaultdict(list)
    for file, text in notes:
        files[text].append(file)
    return [f"{len(some)} files {text} ({shorten(some)})" for text, some in files.items()]


def _pages(path: Path) -> list[Note]:
    with open_image(path) as image:
        several = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # MPO: a photo and its preview
    return [(path, "have several pages or frames, of which only the first is read")] * several

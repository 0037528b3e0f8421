"""What a user may not expect of files that can be read."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from crosscoop.data.check import files_of, upright_size
from crosscoop.data.dataset import VOID, Array, Sample
from crosscoop.data.images import is_deep, open_image, orientation, read_image
from crosscoop.files import shorten

Note = tuple[Path, str]
"""A file, and what is peculiar about it; what differs from file to file is left out."""


def of_sample(sample: Sample, image: Array | None = None) -> list[Note]:
    """Note what is peculiar about the files of a sample; nothing of one that cannot be read.

    Args:
        sample: The sample.
        image: Its image, where that has been read.
    """
    image_path, *mask_paths = map(Path, files_of(sample))
    notes = of_image(image_path, image)
    for mask_path in mask_paths:
        try:
            notes += _pages(mask_path)
            with open_image(image_path) as photo, open_image(mask_path) as mask:
                turn = orientation(photo)
                if turn != orientation(mask) and photo.size == upright_size(mask):
                    text = f"are turned or mirrored by EXIF (orientation {turn}) and their masks are not: do they fit?"
                    notes.append((image_path, text))
        except (OSError, ValueError):  # ours is a ValueError
            continue
    return notes


def of_image(path: Path, image: Array | None = None) -> list[Note]:
    """Note what is peculiar about an image file; nothing of one that cannot be read.

    Args:
        path: The file.
        image: What it was read as, where it has been read.
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
            f"use the lower {8 + top.bit_length()} of 16 bits only and look nearly black, since the upper 8 are read: "
            "scale them to the full range"
        )
        notes.append((path, text))
    return notes


def summed_up(notes: Iterable[Note]) -> list[str]:
    """Return a line for all files of the same peculiarity.

    Args:
        notes: Of any number of files.
    """
    files = defaultdict(list)
    for file, text in notes:
        files[text].append(file)
    return [f"{len(some)} files {text} ({shorten(some)})" for text, some in files.items()]


def _pages(path: Path) -> list[Note]:
    with open_image(path) as image:
        several = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # MPO: a photo and its preview
    return [(path, "have several pages or frames, of which the first is read")] * several

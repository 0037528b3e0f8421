"""Folders of predictions: which images to predict, and the files that contain the results."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from itertools import takewhile
from os.path import commonpath, normpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crosscoop.data.images import write_mask
from crosscoop.data.samples import images_below, read_list, split_line, without_suffix
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing
from crosscoop.prediction.pictures import colored
from crosscoop.prediction.predictor import Prediction

RECORD = "predict.json"


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG atomically."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def write_probabilities(path: Path, probabilities: NDArray[np.float32]) -> None:
    """Write probabilities `(C, H, W)` in half precision, atomically."""
    with replacing(path) as temporary:
        np.savez(temporary, probabilities=probabilities.astype(np.float16))


KINDS: Mapping[str, tuple[str, Callable[[Path, Prediction], None]]] = {
    "labels": (".png", lambda path, seen: write_mask(path, seen.labels, seen.palette)),
    "colors": (".png", lambda path, seen: write_picture(path, Image.fromarray(colored(seen.labels, seen.palette)))),
    "overlays": (".png", lambda path, seen: write_picture(path, seen.draw())),
    "outlines": (".png", lambda path, seen: write_picture(path, seen.outline())),
    "comparison": (".png", lambda path, seen: write_picture(path, seen.compare())),
    "probabilities": (".npz", lambda path, seen: write_probabilities(path, seen.probabilities)),
}
"""The kinds of results that can be saved, each with its file suffix and its writer."""


@dataclass
class Results:
    """A folder of predictions, and the outcome for each image.

    Attributes:
        folder: Contains a folder for each kind, and a record of the predictions' origin.
        kinds: The kinds of results to save, see `KINDS`.
        overwrite: Whether to replace existing results.
        total: Number of images (or frames).
        written: Number of images that were predicted.
        skipped: Number of images whose predictions already existed.
        failures: A message for each image that could not be predicted.
    """

    folder: Path
    kinds: Sequence[str]
    overwrite: bool = False
    total: int = 0
    written: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Number of remaining images; an estimate where a video's container does not state the exact count."""
        return max(self.total - self.written - self.skipped - len(self.failures), 0)

    def claim(self, origin: Mapping[str, str]) -> None:
        """Record the origin of the predictions.

        Args:
            origin: The images, the checkpoint and the protocol.

        Raises:
            CrosscoopError: The existing predictions have another origin; resuming would mix the two.
        """
        record = self.folder / RECORD
        if record.is_file() and not self.overwrite:
            before = json.loads(record.read_text("utf-8"))
            if other := [key for key, value in origin.items() if before.get(key) != value]:
                raise CrosscoopError(
                    f"{self.folder}: got predictions that differ in {', '.join(other)}, expected none, or matching "
                    "ones to resume from. Choose another --output, or add --overwrite."
                )
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(origin, indent=2), "utf-8")

    def path(self, kind: str, name: str) -> Path:
        """Return the file for an image's prediction."""
        return self.folder / kind / f"{name}{KINDS[kind][0]}"

    def missing(self, name: str) -> list[str]:
        """Return the kinds of results that are still missing for an image."""
        return [kind for kind in self.kinds if not self.path(kind, name).exists()]

    def save(self, name: str, prediction: Prediction, kinds: Iterable[str]) -> None:
        """Save a prediction."""
        for kind in kinds:
            KINDS[kind][1](self.path(kind, name), prediction)
        self.written += 1

    def __str__(self) -> str:
        counts = f"{self.written} written, {self.skipped} skipped (already exist), {len(self.failures)} failed"
        return f"{counts}. Results: {self.folder} ({', '.join(self.kinds)})"


def find_images(what: Path) -> tuple[Path, list[Path]]:
    """Find images, and the folder that their names are relative to.

    Args:
        what: A file, a folder, a glob, or a text file that lists images.

    Raises:
        CrosscoopError: `what` does not exist, or is a list that cannot be read.
    """
    if what.is_file() and what.suffix.lower() == ".txt":
        listed = [_listed(line, what.parent) for line in read_list(what)]
        return Path(commonpath([path.parent for path in listed])), listed
    if what.is_file():
        return what.parent, [what]
    root = what if what.is_dir() else Path(*takewhile(lambda part: not has_magic(part), what.parts))
    if root == what and not what.is_dir():
        raise CrosscoopError(
            f"images: got {what}, which does not exist, expected a file, a folder or a glob in quotes."
        )
    images = images_below(root, "**/*" if what.is_dir() else str(what.relative_to(root)))
    return root, [path for path in images if not is_ours(path)]


def _listed(line: str, folder: Path) -> Path:
    """Return the image of a line in a list: its first column or, if that is not a file, the whole line."""
    first = folder / split_line(line, folder)[0]
    return Path(normpath((first if first.is_file() else folder / line).absolute()))


def is_ours(path: Path) -> bool:
    """Return whether an image file is a prediction that crosscoop wrote."""
    folders = [folder for folder in path.absolute().parents if folder.name in KINDS]
    return any((folder.parent / RECORD).is_file() for folder in folders)


def by_name(images: Iterable[Path], root: Path) -> dict[str, Path]:
    """Sort images, and name each by its path below `root` without suffix.

    Raises:
        CrosscoopError: The list is empty, or two images have the same name.
    """
    files: dict[str, Path] = {}
    for path in sorted(set(images)):
        name = without_suffix(path.relative_to(root))
        if name in files:
            raise CrosscoopError(
                f"images: got {files[name]} and {path}, expected distinct names, as both predictions would be named "
                f"{name}. Predict them separately, with --images '{root}/*{path.suffix}' and an --output for each."
            )
        files[name] = path
    if not files:
        raise CrosscoopError(f"images: got none in {root}, expected image files such as .png and .jpg.")
    return files

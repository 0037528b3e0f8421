"""Unlabelled images to train on: other images, or images of the training split whose masks are not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crosscoop.data.dataset import Array, Sample
from crosscoop.data.images import PngRows, png_rows, read_image
from crosscoop.data.samples import images_below, read_list, without_suffix
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A sample whose mask, if there is one, is not used.

    Attributes:
        source: The sample.
    """

    source: Sample

    @property
    def name(self) -> str:
        """The sample's name."""
        return self.source.name

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB."""
        return self.source.image()

    def image_rows(self) -> Array | PngRows:
        """Return the image, as rows to be decoded if possible."""
        rows: Array | PngRows = getattr(self.source, "image_rows", self.source.image)()
        return rows

    def mask(self) -> None:
        """Return None."""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """An image without a mask.

    Attributes:
        name: The sample's name.
        image_path: The image file, see `read_image`.
        mask_path: None.
    """

    name: str
    image_path: Path
    mask_path: None = None

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB."""
        return read_image(self.image_path)

    def image_rows(self) -> Array | PngRows:
        """Return the image, as rows to be decoded if possible."""
        return png_rows(self.image_path, partial(read_image, self.image_path), 3)

    def mask(self) -> None:
        """Return None."""


def divide(
    samples: Sequence[Sample], unlabelled: str | float | None, seed: int, root: Path | None = None
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return the labelled and the unlabelled samples to train on.

    Args:
        samples: The training split.
        unlabelled: A share of the split, drawn by the seed; or a list that names samples of the split or image files;
            or a folder of images.
        seed: Seed of the draw.
        root: The data set's folder, which the paths of a list may be relative to.

    Raises:
        CrosscoopError: The share leaves no labelled or no unlabelled samples, or the list or folder cannot be used.
    """
    if unlabelled is None:
        return samples, []
    if not isinstance(unlabelled, str):
        return _share(samples, unlabelled, seed)
    path = Path(unlabelled).expanduser()
    if path.is_dir():
        return samples, _images({without_suffix(image.relative_to(path)): image for image in images_below(path)}, path)
    if not path.is_file():
        raise CrosscoopError(
            f"data.unlabelled: got {unlabelled}, which does not exist; expected a folder of images, a list file, or "
            "the share of the training split whose masks are not used, such as 0.875."
        )
    return _listed(samples, path, root)


def _share(samples: Sequence[Sample], share: float, seed: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    number = round(len(samples) * share)
    if not 0 < share < 1 or not 0 < number < len(samples):
        raise CrosscoopError(
            f"data.unlabelled: got {share}, which is {number} of {len(samples)} training samples; expected a share "
            "between 0 and 1 that leaves at least one sample labelled and one unlabelled."
        )
    chosen = set(np.random.default_rng(seed).permutation(len(samples))[:number].tolist())
    labelled = [sample for i, sample in enumerate(samples) if i not in chosen]
    return labelled, [Unlabelled(sample) for i, sample in enumerate(samples) if i in chosen]


def _listed(samples: Sequence[Sample], path: Path, root: Path | None) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Divide by a list, whose lines start with the name of a sample of the split, or with an image file.

    The lists of published work (`JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png`) name samples of the
    split.
    """
    by_name = {sample.name: i for i, sample in enumerate(samples)}
    chosen, files, missing = set[int](), dict[str, Path](), list[str]()
    for line in read_list(path):
        word = line.partition("\t")[0] if "\t" in line else line.split()[0]
        parts = without_suffix(Path(word)).removesuffix("_leftImg8bit").split("/")
        names = ["/".join(parts[i:]) for i in range(len(parts))]
        if found := [by_name[name] for name in names if name in by_name]:
            chosen.add(found[0])
            continue
        places = [
            folder / word for folder in (path.parent, Path(), *([root] if root else [])) if (folder / word).is_file()
        ]
        if places:
            files[without_suffix(Path(word))] = places[0]
        else:
            missing.append(word)
    if missing:
        raise CrosscoopError(
            f"data.unlabelled: {path} names {shorten(missing, 3)}, expected samples of the training split, or image "
            "files relative to the list, the working directory or the data set's root."
        )
    labelled = [sample for i, sample in enumerate(samples) if i not in chosen]
    if not labelled:
        raise CrosscoopError(f"data.unlabelled: {path} names all training samples, expected some to remain labelled.")
    taken: list[Sample] = [Unlabelled(sample) for i, sample in enumerate(samples) if i in chosen]
    return labelled, [*taken, *(_images(files, path) if files or not taken else [])]


def _images(files: dict[str, Path], source: Path) -> list[Sample]:
    if not files:
        raise CrosscoopError(f"data.unlabelled: {source} does not name any image, expected at least one.")
    return [ImageSample(name, file) for name, file in files.items()]

"""A data set decoded once into arrays on disk, of which a training crop reads only the rows that it needs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from crosscoop.data.dataset import Array, Sample
from crosscoop.data.samples import FileSample
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing, shorten


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample whose image and mask are already decoded and memory-mapped.

    Attributes:
        source: The sample that was decoded.
        folder: The folder of its split.
    """

    source: FileSample
    folder: Path

    @property
    def name(self) -> str:
        """The sample's name."""
        return self.source.name

    @property
    def image_path(self) -> Path:
        """The image that was decoded."""
        return self.source.image_path

    @property
    def mask_path(self) -> Path | None:
        """The mask that was decoded."""
        return self.source.mask_path

    def file(self, kind: str) -> Path:
        """Return the path of the decoded `image` or `mask`."""
        return self.folder / f"{self.name}.{kind}.npy"

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB, read-only."""
        return self._open("image")

    def mask(self) -> Array | None:
        """Return the mask: `(H, W)` uint8 class indices, read-only; None for unlabelled samples."""
        return None if self.source.mask_path is None else self._open("mask")

    def _open(self, kind: str) -> Array:
        try:
            array: Array = np.load(self.file(kind), mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise CrosscoopError(
                f"{self.file(kind)}: got {error}, expected a decoded {kind}. Run `crosscoop prepare-data` again."
            ) from error
        return array


def prepared_samples(folder: Path, split: str, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the decoded samples of a split, or the samples themselves if the folder does not contain the split.

    Args:
        folder: The folder that contains the splits.
        split: The split.
        samples: Its samples.

    Raises:
        CrosscoopError: The folder does not exist, or a sample is missing from it or has changed since.
    """
    if not folder.is_dir():
        raise CrosscoopError(
            f"data.prepared: got {folder}, expected a folder. Create it with `crosscoop prepare-data --output "
            f"{folder}`."
        )
    known = read_index(folder / split)
    if not known:
        return samples
    sources = only_files(samples)
    if stale := [sample.name for sample in sources if known.get(sample.name) != fingerprint(sample)]:
        raise CrosscoopError(
            f"data.prepared: {len(stale)} of the {len(samples)} samples are not in {folder / split}, or have changed "
            f"since ({shorten(stale)}). Run `crosscoop prepare-data --output {folder}` again, with the same data."
        )
    return [PreparedSample(sample, folder / split) for sample in sources]


def decode(sample: PreparedSample) -> FileSample:
    """Write a sample's arrays, each completely or not at all, and return the original sample."""
    for kind, array in (("image", sample.source.image()), ("mask", sample.source.mask())):
        if array is not None:
            with replacing(sample.file(kind)) as temporary:
                np.save(temporary, array)
    return sample.source


def only_files(samples: Iterable[Sample]) -> list[FileSample]:
    """Return the samples, all of which must be files.

    Raises:
        CrosscoopError: A sample is not a `FileSample`.
    """
    files = []
    for sample in samples:
        if not isinstance(sample, FileSample):
            raise CrosscoopError(
                f"{sample.name}: got a {type(sample).__name__}, expected files: only files can be prepared."
            )
        files.append(sample)
    return files


def fingerprint(sample: FileSample) -> list[int]:
    """Return size and time of the sample's files and a checksum of its lookup table, to detect later changes."""
    paths = [path for path in (sample.image_path, sample.mask_path) if path is not None]
    lookup = 0 if sample.lookup is None else crc32(sample.lookup.tobytes())
    return [number for stat in map(Path.stat, paths) for number in (stat.st_size, stat.st_mtime_ns)] + [lookup]


def read_index(folder: Path) -> dict[str, list[int]]:
    """Return the fingerprints of the samples that are decoded in a folder, by name."""
    try:
        known: dict[str, list[int]] = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return {}
    return known


@contextmanager
def write_index(folder: Path, known: dict[str, list[int]]) -> Iterator[None]:
    """Replace the index when the block ends, even if it is interrupted."""
    try:
        yield
    finally:
        with replacing(folder / "index.json") as temporary:
            temporary.write_text(json.dumps(known))

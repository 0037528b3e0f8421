"""PASCAL VOC 2012, and its augmented training split."""

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from crosscoop.data.dataset import Legend, SegmentationDataset, colormap
from crosscoop.data.samples import FileSample, SplitError, check_samples, read_list
from crosscoop.errors import CrosscoopError
from crosscoop.files import scan, shorten


class PascalVOC(SegmentationDataset):
    """PASCAL VOC 2012: 20 classes and background (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/).

    A split is a list in `ImageSets/Segmentation`: train, val, trainval, trainaug (VOC and SBD, with masks in
    `SegmentationClassAug`; `crosscoop prepare-trainaug` creates both), test (without masks), or your own.

    Args:
        root: The folder that contains `JPEGImages`, `SegmentationClass` and `ImageSets`, or a folder that contains it
            as `VOC2012` or `VOCdevkit/VOC2012`.
        train_split: Split for training.
        val_split: Split for validation.
        test_split: Split for test and prediction. The masks of VOC's `test` are not public: it can only be predicted.
        download: Download VOC (2 GB) if it is not at `root`.
    """

    class_names: Sequence[str] = (
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    )
    palette = colormap(len(class_names))
    legend = Legend(class_names, palette)
    official_sizes: Mapping[str, int] = {
        "train": 1464,
        "val": 1449,
        "trainval": 2913,
        "trainaug": 10582,
        "test": 1456,
    }

    def __init__(
        self,
        root: str = "data/VOCdevkit/VOC2012",
        train_split: str = "trainaug",
        val_split: str = "val",
        test_split: str = "val",
        download: bool = False,
    ) -> None:
        self.root, self.download = root, download
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split

    def prepare(self) -> None:
        """Download VOC if requested and not done yet."""
        find_voc(self.root, self.download)

    def samples(self, split: str) -> Sequence[FileSample]:
        """Return the samples of a split, in the order of its list; download VOC first if requested.

        Args:
            split: Name of a list in `ImageSets/Segmentation`.

        Raises:
            CrosscoopError: VOC, the list or one of its files is missing, or trainaug contains images of val.
        """
        folder = find_voc(self.root, self.download)
        augmented = split == "trainaug"
        source = self._list(folder, split)
        images, masks = folder / "JPEGImages", folder / f"SegmentationClass{'Aug' if augmented else ''}"

        names = read_names(source, images)

        def sample(name: str) -> FileSample:
            mask = None if split == "test" else masks / f"{name}.png"
            return FileSample(name, images / f"{name}.jpg", mask, self.num_classes, None, self.legend)

        samples = [sample(name) for name in names]
        if augmented and (leak := sorted(set(names) & set(read_names(self._list(folder, "val"), images)))):
            raise SplitError(
                f"{source}: got {len(leak)} images that are also in val ({shorten(leak)}), expected none. Create a "
                f"clean list with `crosscoop prepare-trainaug --root {self.root}`.",
                samples,
            )
        return check_samples(samples, source)

    def _list(self, folder: Path, split: str) -> Path:
        lists = folder / "ImageSets" / "Segmentation"
        files = ("trainaug.txt", "train_aug.txt") if split == "trainaug" else (f"{split}.txt",)
        for file in files:
            if (lists / file).is_file():
                return lists / file
        remedy = f"Existing lists: {', '.join(path.stem for path in scan(lists, '*.txt'))}."
        if split == "trainaug":
            remedy = f"Create it with `crosscoop prepare-trainaug --root {self.root}`."
        raise CrosscoopError(
            f'{lists}: got the split "{split}", expected its list {" or ".join(files)} there. {remedy}'
        )


def find_voc(root: str, download: bool = False) -> Path:
    """Return the folder that contains `JPEGImages` and `ImageSets`.

    Args:
        root: That folder, or one that contains it as `VOC2012` or `VOCdevkit/VOC2012`.
        download: Download VOC if it is missing; later calls find the download.

    Raises:
        CrosscoopError: VOC is missing, or cannot be downloaded.
    """
    base = Path(root)
    candidates = (base, base / "VOC2012", base / "VOCdevkit" / "VOC2012")
    for folder in candidates:
        if (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    if download:
        download_to(
            {"VOC2012": candidates[0], "VOCdevkit": candidates[1]}.get(base.name, candidates[2]),
            _download_voc,
        )
        return find_voc(root)
    raise CrosscoopError(
        f"{root}: got no PASCAL VOC 2012 data, expected a folder with JPEGImages, SegmentationClass and "
        "ImageSets/Segmentation. Correct the root, or remove what is there and set download to true."
    )


def read_names(path: Path, images: Path) -> list[str]:
    """Read image names from a list in VOC's form (`2007_000032 1`) or DeepLab's (`/JPEGImages/2007_000032.jpg ...`).

    Folders are ignored, so that a line cannot refer to a file outside VOC's folders. Names may contain dots and blanks.

    Args:
        path: The list.
        images: The folder of the images: if it contains an image named like the complete line, blanks included, that is
            the name.
    """
    return [_name(line, images) for line in read_list(path)]


def _name(line: str, images: Path) -> str:
    if file := re.match(r"(?:.*?[/\\])?([^/\\]+?)\.(jpe?g|png)(?=[\s,;]|$)", line, re.IGNORECASE):
        return file[1]
    first = line.split()[0]
    whole = line if line == first or (images / f"{line}.jpg").is_file() else first
    return whole.replace("\\", "/").rpartition("/")[2]


def download_to(target: Path, download: Callable[[Path], Path]) -> None:
    """Download into a temporary folder and rename it: the target is always complete, and ranks do not collide.

    Args:
        target: The folder to create; if it is not empty, nothing is downloaded.
        download: Downloads into the folder that it receives, and returns the folder to keep.

    Raises:
        CrosscoopError: The download failed.
    """
    if target.is_dir() and any(target.iterdir()):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary, safe_archives():
            download(Path(temporary)).rename(target)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        if not target.is_dir():  # otherwise another process was faster
            raise CrosscoopError(
                f"{target}: the download failed ({error}), expected VOC or SBD. Try again, or put it there yourself."
            ) from error


@contextmanager
def safe_archives() -> Iterator[None]:
    """Reject archives that would write files outside their folder, within the block (Python 3.14 always does)."""
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _download_voc(folder: Path) -> Path:
    from torchvision.datasets import VOCSegmentation

    VOCSegmentation(folder, year="2012", image_set="train", download=True)
    return folder / "VOCdevkit" / "VOC2012"

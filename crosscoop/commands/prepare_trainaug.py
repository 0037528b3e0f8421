"""`crosscoop prepare-trainaug`: VOC's augmented training split, 10,582 images from VOC and SBD."""

from pathlib import Path

import numpy as np
from rich.progress import track

from crosscoop.data.dataset import Array, colormap
from crosscoop.data.datasets.voc import PascalVOC, download_to, find_voc, read_names
from crosscoop.data.images import read_mask, write_mask
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing, scan, shorten

IMAGES = PascalVOC.official_sizes["trainaug"]
"""The number of images that the split must have; also detects a truncated val list, which would leak val."""

CLASSES = len(PascalVOC.class_names)


def prepare_trainaug(root: str = "data/VOCdevkit/VOC2012", sbd: str | None = None, download: bool = False) -> None:
    """Create VOC's split trainaug: VOC train, SBD train and SBD val combined, without VOC val.

    The masks are written to `SegmentationClassAug`, with VOC's own masks taking precedence over SBD's, and the list to
    `ImageSets/Segmentation/trainaug.txt`. The same command resumes an interrupted run. SBD is the Semantic Boundaries
    Dataset (Hariharan et al., ICCV 2011, http://home.bharathh.info/pubs/codes/SBD/download.html). It is not needed if
    `SegmentationClassAug` is already complete, as offered by many sites: then only the list is written.

    Args:
        root: The folder of VOC 2012, as for the data set PascalVOC.
        sbd: The folder of SBD with `cls`, `train.txt` and `val.txt`, or `benchmark_RELEASE` or its parent; by
            default `sbd` beside `VOCdevkit`.
        download: Download VOC (2 GB) and SBD (1.4 GB) if they are missing.

    Raises:
        CrosscoopError: VOC or SBD is missing or damaged, or the result would not consist of the 10,582 images.
    """
    voc = find_voc(root, download)
    lists, masks = voc / "ImageSets" / "Segmentation", voc / "SegmentationClassAug"
    images = voc / "JPEGImages"
    train, val = (set(read_names(lists / f"{split}.txt", images)) for split in ("train", "val"))

    found = track(scan(masks, "*.png"), "Checking existing masks", transient=True)
    ready = {path.stem for path in found if _is_whole(path)}
    names, todo = ready - val, set[str]()
    source = voc.parent.parent / "sbd" if sbd is None else Path(sbd)
    if len(names) != IMAGES:
        source = _find_sbd(source, download, masks, len(names))
        names = train.union(*(read_names(source / f"{split}.txt", images) for split in ("train", "val"))) - val
        todo = (names - ready) | train  # VOC's masks also replace those of another preparation
    _check(names, train, voc)

    for name in track(sorted(todo), "Writing SegmentationClassAug", transient=True):
        if name in train:
            mask = read_mask(voc / "SegmentationClass" / f"{name}.png", CLASSES, None, PascalVOC.legend)
        else:
            mask = _read_sbd(source / "cls" / f"{name}.mat")
        write_mask(masks / f"{name}.png", mask, colormap(256))
    with replacing(lists / "trainaug.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in sorted(names)))
    print(f"{lists / 'trainaug.txt'}: {len(names)} images")


def _check(names: set[str], train: set[str], voc: Path) -> None:
    """Reject a split that is not the official one before anything is written."""
    if len(names) != IMAGES:
        raise CrosscoopError(
            f"{voc}: got {len(names)} images for trainaug, expected {IMAGES}. Restore the official lists of VOC (train "
            "1464, val 1449) and SBD (train 8498, val 2857)."
        )
    if absent := sorted(train - names):
        raise CrosscoopError(
            f"{voc}: got {len(absent)} images of train that are in val or have no mask ({shorten(absent)}), "
            "expected none. Restore VOC's lists and SegmentationClassAug."
        )
    if absent := sorted(name for name in names if not (voc / "JPEGImages" / f"{name}.jpg").is_file()):
        raise CrosscoopError(
            f"{voc / 'JPEGImages'}: {len(absent)} of the {IMAGES} images are missing ({shorten(absent)}), "
            "expected all. Unpack VOCtrainval_11-May-2012.tar again."
        )


def _is_whole(path: Path) -> bool:
    try:
        return read_mask(path, CLASSES, None, PascalVOC.legend).size > 0
    except CrosscoopError:
        return False


def _find_sbd(root: Path, download: bool, masks: Path, count: int) -> Path:
    """Return the folder with `cls`, `train.txt` and `val.txt`."""
    for folder in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir():
            return folder
    if download:
        download_to(root, _download_sbd)
        return _find_sbd(root, False, masks, count)
    raise CrosscoopError(
        f"{root}: got no SBD data, expected a folder with cls, train.txt and val.txt, because {masks} contains "
        f"{count} valid masks outside val, not {IMAGES}. Give SBD's folder with --sbd, or add --download."
    )


def _download_sbd(folder: Path) -> Path:
    from torchvision.datasets import SBDataset

    SBDataset(folder / "sbd", mode="segmentation", download=True)
    return folder / "sbd"


def _read_sbd(path: Path) -> Array:
    """Return the class indices `(H, W)` of one of SBD's masks."""
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:  # given a path, scipy does not report a missing file
            mask = np.asarray(loadmat(file)["GTcls"]["Segmentation"][0, 0])
        highest = mask.max(initial=0)
    except Exception as error:  # scipy raises OSError, ValueError, TypeError, KeyError, zlib.error and more
        raise CrosscoopError(
            f"{path}: got an unreadable file ({error!r}), expected one of SBD's masks. Unpack SBD again."
        ) from error
    if mask.ndim != 2 or highest >= CLASSES:
        raise CrosscoopError(
            f"{path}: got a mask of shape {mask.shape} with values up to {highest}, expected (H, W) and "
            f"classes below {CLASSES}. Unpack SBD again."
        )
    return mask.astype(np.uint8)

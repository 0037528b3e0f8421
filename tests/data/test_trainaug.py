"""The preparation of VOC's split trainaug, on a small VOC and a small SBD."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from crosscoop.commands import prepare_trainaug as trainaug
from crosscoop.commands.prepare_trainaug import prepare_trainaug
from crosscoop.data.dataset import colormap
from crosscoop.data.datasets.voc import PascalVOC
from crosscoop.data.images import read_mask, write_mask
from crosscoop.data.samples import read_list
from crosscoop.errors import CrosscoopError

TRAIN, VAL, SBD_TRAIN, SBD_VAL = "ab", "cd", "bce", "fdg"
TRAINAUG = ["a", "b", "e", "f", "g"]
VOC_MASK = np.array([[0, 15, 255]], np.uint8)
SBD_MASK = np.array([[0, 15, 20]], np.uint8)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_sbd(path: Path, mask: np.ndarray) -> None:
    """A file as SBD has it: a struct with boundaries, a segmentation and the categories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [np.zeros(mask.shape, np.uint8)] * 20
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": [[15], [20]]}})


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    text(root / "ImageSets/Segmentation/train.txt", *TRAIN)
    text(root / "ImageSets/Segmentation/val.txt", *VAL)
    (root / "JPEGImages").mkdir()
    for name in "abcdefg":
        Image.new("RGB", (3, 1)).save(root / "JPEGImages" / f"{name}.jpg")
    for name in TRAIN + VAL:
        write_mask(root / "SegmentationClass" / f"{name}.png", VOC_MASK, colormap(256))
    monkeypatch.setattr(trainaug, "IMAGES", len(TRAINAUG))
    return root


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    text(folder / "train.txt", *SBD_TRAIN)
    text(folder / "val.txt", *SBD_VAL)
    for name in SBD_TRAIN + SBD_VAL:
        write_sbd(folder / "cls" / f"{name}.mat", SBD_MASK)
    return folder


def written(voc: Path) -> list[str]:
    return read_list(voc / "ImageSets/Segmentation/trainaug.txt")


def refused(*parts: object, **arguments: object) -> None:
    with pytest.raises(CrosscoopError) as caught:
        prepare_trainaug(**arguments)
    for part in (*parts, "expected"):
        assert str(part) in str(caught.value)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_conversion(voc: Path, sbd: Path, up: int) -> None:
    prepare_trainaug(str(voc), str((sbd, *sbd.parents)[up]))
    assert written(voc) == TRAINAUG
    masks = voc / "SegmentationClassAug"
    assert sorted(path.name for path in masks.iterdir()) == [f"{name}.png" for name in TRAINAUG]
    for name in TRAINAUG:  # VOC's own mask wins for b, which both have
        assert np.array_equal(read_mask(masks / f"{name}.png", 21), VOC_MASK if name in TRAIN else SBD_MASK)
    with Image.open(masks / "e.png") as image:
        assert image.mode == "P" and np.array(image.convert("RGB"))[0, 1].tolist() == [192, 128, 128]
    samples = PascalVOC(str(voc)).samples("trainaug")
    assert [sample.name for sample in samples] == TRAINAUG and samples[0].image().shape == (1, 3, 3)


def test_continues_where_it_was_stopped(voc: Path, sbd: Path) -> None:
    masks = voc / "SegmentationClassAug"
    write_mask(masks / "b.png", SBD_MASK, colormap(256))  # from another preparation: VOC's own has to win
    write_mask(masks / "e.png", SBD_MASK * 0, colormap(256))  # whole: is kept
    write_mask(masks / "f.png", SBD_MASK, colormap(256))
    (masks / "f.png").write_bytes((masks / "f.png").read_bytes()[:-40])  # truncated: is made again
    (masks / "g.png").touch()
    prepare_trainaug(str(voc), str(sbd))
    assert not read_mask(masks / "e.png", 21).any()
    assert np.array_equal(read_mask(masks / "b.png", 21), VOC_MASK)
    assert all(np.array_equal(read_mask(masks / f"{name}.png", 21), SBD_MASK) for name in "fg")
    assert written(voc) == TRAINAUG


def test_an_interruption_leaves_no_half_file(voc: Path, sbd: Path) -> None:
    broken = sbd / "cls" / "g.mat"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    refused(broken, "got an unreadable file", root=str(voc), sbd=str(sbd))
    masks = voc / "SegmentationClassAug"
    assert sorted(path.name for path in masks.iterdir()) == ["a.png", "b.png", "e.png", "f.png"]
    assert not (voc / "ImageSets/Segmentation/trainaug.txt").exists()
    broken.write_bytes(whole)
    prepare_trainaug(str(voc), str(sbd))
    assert written(voc) == TRAINAUG


def test_ready_made_masks_only_get_their_list(voc: Path) -> None:
    masks = voc / "SegmentationClassAug"
    for name in TRAINAUG + list(VAL):  # ready-made folders hold val too
        write_mask(masks / f"{name}.png", SBD_MASK, colormap(256))
    before = {path: path.stat().st_mtime_ns for path in masks.iterdir()}
    prepare_trainaug(str(voc))
    assert written(voc) == TRAINAUG
    assert {path: path.stat().st_mtime_ns for path in masks.iterdir()} == before


def test_ready_made_masks_that_are_incomplete_ask_for_sbd(voc: Path) -> None:
    masks = voc / "SegmentationClassAug"
    for name in TRAINAUG:
        write_mask(masks / f"{name}.png", SBD_MASK, colormap(256))
    (masks / "e.png").write_bytes(b"")
    refused(voc.parents[1] / "sbd", "got no SBD", f"{masks} contains 4 valid masks", "not 5", "--sbd", root=str(voc))


def test_the_count_is_asserted(voc: Path, sbd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text(voc / "ImageSets/Segmentation/val.txt", "c")  # a shortened list would let d leak into training
    refused(voc, "got 6 images", "expected 5", root=str(voc), sbd=str(sbd))
    assert not (voc / "SegmentationClassAug").exists()
    monkeypatch.undo()
    refused("expected 10582", root=str(voc), sbd=str(sbd))


def test_train_may_not_overlap_val(voc: Path, sbd: Path) -> None:
    text(voc / "ImageSets/Segmentation/train.txt", *"abc")
    refused(voc, "got 1 images of train that are in val", "(c)", root=str(voc), sbd=str(sbd))


def test_every_image_is_needed(voc: Path, sbd: Path) -> None:
    (voc / "JPEGImages" / "e.jpg").unlink()
    refused(voc / "JPEGImages", "1 of the 5 images are missing (e)", root=str(voc), sbd=str(sbd))


def test_every_mask_is_needed(voc: Path, sbd: Path) -> None:
    (sbd / "cls" / "e.mat").unlink()
    refused(sbd / "cls" / "e.mat", "No such file", root=str(voc), sbd=str(sbd))
    (voc / "SegmentationClass" / "a.png").unlink()
    refused(voc / "SegmentationClass" / "a.png", "file not found", root=str(voc), sbd=str(sbd))


def test_masks_with_other_classes_are_refused(voc: Path, sbd: Path) -> None:
    write_sbd(sbd / "cls" / "e.mat", SBD_MASK + 1)
    refused(sbd / "cls" / "e.mat", "values up to 21", "classes below 21", root=str(voc), sbd=str(sbd))


def test_lists_cannot_leave_their_folder(voc: Path, sbd: Path) -> None:
    text(sbd / "val.txt", "f", "d", "../../g")
    prepare_trainaug(str(voc), str(sbd))
    assert written(voc) == TRAINAUG
    assert not list(voc.parent.glob("*.png"))


def test_download(voc: Path, sbd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: Path, mode: str, download: bool) -> None:
        sbd.rename(root)  # torchvision moves cls and the lists to the root

    monkeypatch.setattr(torchvision.datasets, "SBDataset", download)
    prepare_trainaug(str(voc), download=True)
    assert written(voc) == TRAINAUG and (voc.parents[1] / "sbd" / "cls").is_dir()

"""What is prepared once: decoded data sets, and VOC's split trainaug."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from scipy.io import savemat
from tiny import NETWORK, QUIET, crosscoop

from crosscoop.commands import prepare_trainaug as trainaug
from crosscoop.commands.prepare_data import prepare_data
from crosscoop.commands.prepare_trainaug import prepare_trainaug
from crosscoop.data import Folder, SegmentationData, Streets
from crosscoop.data.dataset import colormap
from crosscoop.data.datasets.voc import PascalVOC
from crosscoop.data.images import read_mask, write_mask
from crosscoop.data.prepared import PreparedSample
from crosscoop.data.samples import read_list
from crosscoop.errors import CrosscoopError

# -- decoded data sets: the same pixels, and never stale ones

CLASSES = ["a", "b", "c"]


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            for kind, suffix, shape in (("images", "jpg", (40, 56, 3)), ("masks", "png", (40, 56))):
                path = tmp_path / "data" / kind / split / "sub" / f"{i}.x.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 3, shape, dtype=np.uint8)).save(path)
    return tmp_path


def module(root, **options):
    splits = {name: {"images": f"images/{name}", "masks": f"masks/{name}"} for name in ("train", "val")}
    config = {"root": str(root / "data"), "class_names": CLASSES, "splits": splits, "test_split": "val"}
    (root / "data.yaml").write_text(yaml.safe_dump({"dataset": {"class_path": "Folder", "init_args": config}}))
    from crosscoop.data.datasets.folder import Split

    dataset = Folder(**{**config, "splits": {name: Split(**split) for name, split in splits.items()}})
    return SegmentationData(dataset, batch_size=2, crop_size=32, num_workers=0, **options)


def refusal(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        crosscoop(*command)
    assert caught.value.code == 2
    return capsys.readouterr().err


def prepare(root, *options):
    module(root)
    crosscoop("prepare-data", "--config", root / "data.yaml", "--output", root / "prepared", *options)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same(root, workers):
    prepare(root, "--splits train,val")
    plain, prepared = module(root), module(root, prepared=str(root / "prepared"))
    prepared.num_workers = workers
    assert all(isinstance(sample, PreparedSample) for sample in prepared.samples("train"))
    for loader in ("train_dataloader", "val_dataloader"):
        for batch, other in zip(getattr(plain, loader)(), getattr(prepared, loader)(), strict=True):
            assert batch["name"] == other["name"]
            assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["mask"], other["mask"])


def test_splits_that_are_not_prepared_are_read_as_ever(root, capsys):
    prepare(root)
    assert "4 samples, 4 of them new" in capsys.readouterr().out
    data = module(root, prepared=str(root / "prepared"))
    assert [type(data.samples(split)[0]).__name__ for split in ("train", "val")] == ["PreparedSample", "FileSample"]


def test_it_goes_on_where_it_was_stopped_and_renews_what_changed(root, capsys):
    prepare(root)
    index = root / "prepared" / "train" / "index.json"
    known = json.loads(index.read_text())
    del known["sub/1.x"]
    index.write_text(json.dumps(known))
    changed = root / "data" / "images" / "train" / "sub" / "2.x.jpg"
    Image.fromarray(np.full((40, 56, 3), 9, np.uint8)).save(changed)
    capsys.readouterr()
    prepare(root)
    assert "4 samples, 2 of them new" in capsys.readouterr().out
    data = module(root, prepared=str(root / "prepared"))
    assert (data.samples("train")[2].image() == 9).all()
    assert not list((root / "prepared").rglob(".*"))


def test_what_changed_since_is_refused(root, capsys):
    prepare(root)
    mask = root / "data" / "masks" / "train" / "sub" / "3.x.png"
    os.utime(mask, ns=(0, 0))
    options = [*NETWORK, *QUIET, "--data", str(root / "data.yaml"), "--data.prepared", str(root / "prepared")]
    error = refusal(capsys, "fit", *options, "--run", root / "run", "--trainer.max_epochs 1")
    assert "1 of the 4 samples" in error and "sub/3.x" in error and "prepare-data" in error


def test_a_folder_that_is_not_there_is_refused(root):
    with pytest.raises(Exception, match=r"expected a folder\. Create it with `crosscoop prepare-data"):
        module(root, prepared=str(root / "nowhere")).samples("train")


def test_an_array_that_was_lost_is_named(root):
    prepare(root)
    (root / "prepared" / "train" / "sub" / "0.x.image.npy").write_bytes(b"")
    data = module(root, prepared=str(root / "prepared"))
    with pytest.raises(Exception, match=r"0\.x\.image\.npy: got .*prepare-data"):
        data.samples("train")[0].image()


def test_generated_samples_are_refused(tmp_path):
    with pytest.raises(Exception, match="expected files"):
        prepare_data(SegmentationData(Streets(num_train=1)), str(tmp_path))


def test_a_folder_that_cannot_be_written_is_named(root, capsys):
    (root / "file").write_text("")
    module(root)
    error = refusal(capsys, "prepare-data", "--config", root / "data.yaml", "--output", root / "file" / "below")
    assert "cannot be written" in error and "Give another --output" in error


# -- trainaug, of a small VOC and a small SBD

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

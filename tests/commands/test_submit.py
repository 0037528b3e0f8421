"""Archives for the servers: what they hold, what is refused, and that they score as the predictions do."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_score import FRAMES, NAMES, SIZE, cityscapes, data, disturbed, refused, save, scored, voc
from tiny import NETWORK, QUIET, crosscoop

from crosscoop.data.dataset import VOID, colormap
from crosscoop.data.datasets.cityscapes import LABEL_TO_TRAIN, TRAIN_TO_LABEL
from crosscoop.data.images import write_mask

__all__ = ["cityscapes", "voc"]


@pytest.fixture
def indices(tmp_path: Path) -> Path:
    """Class indices for the frames of `cityscapes`, the first with 255."""
    generator = np.random.default_rng(2)
    for number, name in enumerate(FRAMES):
        labels = disturbed(generator, np.full(SIZE, 3, np.uint8), range(19))
        labels[0] = 0 if number else VOID
        save(tmp_path / "indices" / f"{name}.png", labels)
    return tmp_path / "indices"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Class indices for the images of `voc`, the first as palette PNG of other colours."""
    generator = np.random.default_rng(3)
    for name in NAMES:
        labels = disturbed(generator, np.full(SIZE, 3, np.uint8), range(21))
        save(tmp_path / "classes" / f"{name}.png", labels)
        if name == NAMES[0]:
            write_mask(tmp_path / "classes" / f"{name}.png", labels, [(9, 9, 9)])
    return tmp_path / "classes"


def contents(archive: Path, folder: Path) -> dict[str, Image.Image]:
    """The files of an archive, by name, unpacked as a careful server does."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            assert packed.testzip() is None
            names = packed.namelist()
            packed.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            assert all(member.isreg() for member in tar)
            names = tar.getnames()
            tar.extractall(folder, filter="data")
    assert len(names) == len(set(names))
    assert all((folder / name).resolve().is_relative_to(folder.resolve()) for name in names)
    assert sorted(names) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: Image.open(folder / name) for name in names}


def test_cityscapes(cityscapes: Path, indices: Path, tmp_path: Path) -> None:
    archive = tmp_path / "new" / "cityscapes.zip"
    crosscoop("submit", "--predictions", indices, *data("Cityscapes", cityscapes), "--split val --output", archive)
    packed = contents(archive, tmp_path / "unpacked")
    assert list(packed) == [f"{name.split('/')[1]}_leftImg8bit.png" for name in FRAMES]
    for name, image in zip(FRAMES, packed.values(), strict=True):
        labels = np.array(Image.open(indices / f"{name}.png"))
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.array(image), TRAIN_TO_LABEL[labels])
        np.testing.assert_array_equal(LABEL_TO_TRAIN[np.array(image)], labels)
    first = scored(indices, *data("Cityscapes", cityscapes))
    second = scored(tmp_path / "unpacked", *data("Cityscapes", cityscapes), "--label-ids")
    assert {**first, "predictions": None} == {**second, "predictions": None}


def test_cityscapes_test_needs_no_masks(cityscapes: Path, indices: Path, tmp_path: Path) -> None:
    (cityscapes / "leftImg8bit" / "val").rename(cityscapes / "leftImg8bit" / "test")
    shutil.rmtree(cityscapes / "gtFine")
    crosscoop("submit", "--predictions", indices, *data("Cityscapes", cityscapes), "--output", tmp_path / "a.zip")
    assert len(contents(tmp_path / "a.zip", tmp_path / "unpacked")) == 3


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.gz"])
@pytest.mark.parametrize(
    ("options", "folder"),
    [("", "comp6_test_cls"), ("--competition comp5", "comp5_test_cls"), ("--split val", "comp6_val_cls")],
)
def test_voc(voc: Path, classes: Path, tmp_path: Path, suffix: str, options: str, folder: str) -> None:
    archive = tmp_path / f"voc{suffix}"
    crosscoop("submit", "--predictions", classes, *data("PascalVOC", voc), "--output", archive, options)
    assert (archive.read_bytes()[:2] == b"\x1f\x8b") == (suffix != ".tar")
    packed = contents(archive, tmp_path / "unpacked")
    assert list(packed) == [f"results/VOC2012/Segmentation/{folder}/{name}.png" for name in NAMES]
    for name, image in zip(NAMES, packed.values(), strict=True):
        assert (image.format, image.mode) == ("PNG", "P")
        assert image.getpalette() == [channel for color in colormap(256) for channel in color]
        np.testing.assert_array_equal(np.array(image), np.array(Image.open(classes / f"{name}.png")))
    if "val" in options:
        first = scored(classes, *data("PascalVOC", voc))
        second = scored(tmp_path / "unpacked", *data("PascalVOC", voc))
        assert first["miou"] == second["miou"]


def test_names_cannot_leave_the_folder(voc: Path, classes: Path, tmp_path: Path) -> None:
    lines = "".join(f"../../{name}\n" for name in NAMES)
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text(lines)
    crosscoop("submit", "--predictions", classes, *data("PascalVOC", voc), "--output", tmp_path / "a.tar")
    assert all(".." not in name for name in contents(tmp_path / "a.tar", tmp_path / "unpacked"))


def test_faults_are_named_and_nothing_is_written(
    voc: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    command = ("submit", "--predictions", classes, *data("PascalVOC", voc), "--output", tmp_path / "out" / "a.tgz")
    (classes / "sub").mkdir()
    shutil.copy(classes / f"{NAMES[0]}.png", classes / "sub")
    (classes / f"{NAMES[1]}.png").unlink()
    save(classes / f"{NAMES[2]}.png", np.zeros((10, 12), np.uint8))
    error = refused(capsys, *command)
    assert f"1 missing: {NAMES[1]}" in error
    assert f"1 ambiguous: {NAMES[0]} (" in error
    assert f"1 of another size: {classes / NAMES[2]}.png (got 10 x 12, expected 24 x 40)" in error
    save(classes / f"{NAMES[2]}.png", np.full(SIZE, VOID, np.uint8))
    assert f"1 unusable: {classes / NAMES[2]}.png: got pixels without a class (255)" in refused(capsys, *command)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_is_replaced_only_when_asked(
    voc: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_text("precious")
    options = ("--predictions", classes, *data("PascalVOC", voc), "--output", archive)
    assert "a.tgz exists" in refused(capsys, "submit", *options)
    assert archive.read_text() == "precious"
    crosscoop("submit", "--overwrite", *options)
    assert tarfile.is_tarfile(archive)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.dataset CamVid --output a.zip", "got CamVid, expected Cityscapes or PascalVOC"),
        ("--data.dataset Cityscapes --output a.tgz", "expected a name that ends in .zip"),
        ("--data.dataset PascalVOC --output a.zip", "ends in .tar or .tgz or .tar.gz"),
        ("--data.dataset PascalVOC --output a.tgz --competition comp7", "comp7"),
        ("--data.dataset PascalVOC", "required: output"),
    ],
)
def test_wrong_options(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "submit", "--predictions x", options)


def test_test_predict_score_submit(cityscapes: Path, tmp_path: Path) -> None:
    """One figure, four ways: `test`, `score` of what `predict` writes, and of what the server gets."""
    run, archive = tmp_path / "run", tmp_path / "val.zip"
    train = ("--data.dataset.train_split val --data.batch_size 2 --data.crop_size 24 --data.num_workers 0",)
    options = (*data("Cityscapes", cityscapes), *train, "--trainer.max_epochs 1 --trainer.limit_val_batches 0")
    crosscoop("fit", *NETWORK, *QUIET, *options, "--run", run, "--model.optimizer.lr 0.1")
    crosscoop("test", "--run", run, "--ckpt_path", run / "last.ckpt")
    crosscoop("predict", "--run", run, "--ckpt_path", run / "last.ckpt")
    tested = json.loads((run / "metrics.json").read_text())

    config, labels = ("--config", run / "config.yaml"), run / "predictions/val/labels"
    crosscoop("submit", "--predictions", labels, *config, "--split val --output", archive)
    contents(archive, tmp_path / "unpacked")
    for record in (scored(labels, *config), scored(tmp_path / "unpacked", *config, "--label-ids")):
        assert record["protocol"] == {**tested["protocol"], "inference": "label files"}
        for key in ("miou", "pixel_accuracy", "iou_per_class", "num_images", "absent_classes"):
            assert record[key] == tested[key]
    assert tested["num_images"] == 3
    assert 0 < tested["pixel_accuracy"] < 1

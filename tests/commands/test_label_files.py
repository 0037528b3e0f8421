"""Label PNGs of any tool: `crosscoop score` counts them, `crosscoop submit` packs them for a benchmark's server."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import NETWORK, QUIET, ROOT, crosscoop

from crosscoop.data import SegmentationData
from crosscoop.data.dataset import VOID, Array, colormap
from crosscoop.data.datasets.cityscapes import LABEL_TO_TRAIN, TRAIN_TO_LABEL, Cityscapes
from crosscoop.data.datasets.voc import PascalVOC
from crosscoop.data.images import write_mask
from crosscoop.errors import CrosscoopError

REAL = ROOT.parent / "shared" / "data"
FRAMES = ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019")
NAMES = ("2007_000032", "2007_000033", "2007_000042")
SIZE = (24, 40)


def save(path: Path, values: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def blocks(generator: np.random.Generator, values: Any) -> Array:
    """Random values in blocks of 4 x 4 pixels."""
    small = generator.choice(np.array(values, np.uint8), (SIZE[0] // 4, SIZE[1] // 4))
    return small.repeat(4, 0).repeat(4, 1)


def disturbed(generator: np.random.Generator, truth: Array, values: Any) -> Array:
    """The truth, but for a third of its blocks."""
    return np.where(blocks(generator, [0, 0, 1]) == 1, blocks(generator, values), truth)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Three frames of all ids but one evaluated, and in `labels` predicted labelIds, evaluated or not."""
    generator, root = np.random.default_rng(0), tmp_path / "cityscapes"
    ids = [value for value in range(34) if value != 31]  # no train: an absent class
    for name in FRAMES:
        truth = blocks(generator, ids)
        save(root / "leftImg8bit" / "val" / f"{name}_leftImg8bit.png", generator.integers(0, 256, (*SIZE, 3), np.uint8))
        save(root / "gtFine" / "val" / f"{name}_gtFine_labelIds.png", truth)
        save(tmp_path / "labels" / f"{name}.png", disturbed(generator, truth, ids))
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images whose masks hold void, and in `labels` predictions that hold 255, the first as palette PNG."""
    generator, root = np.random.default_rng(1), tmp_path / "VOC2012"
    for name in NAMES:
        truth = blocks(generator, [0, 0, 3, 7, 15, 20, VOID])
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
        write_mask(root / "SegmentationClass" / f"{name}.png", truth, PascalVOC.palette)
        labels = disturbed(generator, truth, [0, 3, 7, 11, 15, VOID])
        if name == NAMES[0]:
            write_mask(tmp_path / "labels" / f"{name}.png", labels, colormap(256))
        else:
            save(tmp_path / "labels" / f"{name}.png", labels)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("val", "test"):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


def data(name: str, root: Path) -> list[str]:
    return ["--data.dataset", name, "--data.dataset.root", str(root)]


def scored(labels: Path, *options: object) -> dict[str, Any]:
    """What `score` writes."""
    output = labels.parent / "scored.json"
    crosscoop("score", "--predictions", labels, *options, "--output", output)
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one message of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        crosscoop(*options)  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("crosscoop: error: ")
    return error


def assert_official(record: dict[str, Any], labels: list[Path], masks: list[Path]) -> None:
    """The figures of Cityscapes' own evaluation."""
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="pip install --no-deps cityscapesscripts; pip install pyquaternion",
        exc_type=ImportError,
    )
    official.args.evalInstLevelScore, official.args.JSONOutput, official.args.quiet = False, False, True
    expected = official.evaluateImgLists([str(path) for path in labels], [str(path) for path in masks], official.args)
    assert record["miou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-9)
    ours = {name: np.nan if iou is None else iou for name, iou in record["iou_per_class"].items()}
    assert ours == pytest.approx({name: expected["classScores"][name] for name in ours}, abs=1e-9, nan_ok=True)


def test_cityscapes_equals_the_official_scripts(cityscapes: Path) -> None:
    folder = cityscapes.parent / "labels"
    record = scored(folder, *data("Cityscapes", cityscapes), "--label-ids")
    assert record["absent_classes"] == ["train"]
    masks = [cityscapes / "gtFine" / "val" / f"{name}_gtFine_labelIds.png" for name in FRAMES]
    assert_official(record, [folder / f"{name}.png" for name in FRAMES], masks)


def test_class_indices_score_as_label_ids_do(cityscapes: Path) -> None:
    folder, indices = cityscapes.parent / "labels", cityscapes.parent / "indices"
    for name in FRAMES:
        save(indices / f"{name}.png", LABEL_TO_TRAIN[np.array(Image.open(folder / f"{name}.png"))])
    first = scored(folder, *data("Cityscapes", cityscapes), "--label-ids")
    second = scored(indices, *data("Cityscapes", cityscapes))
    assert {**first, "predictions": None} == {**second, "predictions": None}


def test_voc_equals_a_count_by_hand(voc: Path) -> None:
    folder = voc.parent / "labels"
    both, true, predicted = Counter[int](), Counter[int](), Counter[int]()
    for name in NAMES:
        truth = np.array(Image.open(voc / "SegmentationClass" / f"{name}.png")).ravel().tolist()
        labels = np.array(Image.open(folder / f"{name}.png")).ravel().tolist()
        for right, label in zip(truth, labels, strict=True):
            if right != VOID:
                true[right] += 1
                predicted[label] += 1
                both[right] += right == label
    union = {index: true[index] + predicted[index] - both[index] for index in range(21)}
    iou = {index: both[index] / union[index] if union[index] else None for index in union}
    present = [share for share in iou.values() if share is not None]

    record = scored(folder, *data("PascalVOC", voc), "--split val")
    assert list(record["iou_per_class"].values()) == pytest.approx(list(iou.values()), abs=1e-12)
    assert record["miou"] == pytest.approx(sum(present) / len(present), abs=1e-12)
    assert record["pixel_accuracy"] == pytest.approx(sum(both.values()) / sum(true.values()), abs=1e-12)
    assert predicted[VOID] > 0
    assert record["num_images"] == 3
    assert record["protocol"] == {
        "dataset": "PascalVOC",
        "split": "val",
        "num_images": 3,
        "official_num_images": 1449,
        "evaluation": "whole images at their own size",
        "inference": "label files",
    }


def test_boundary_iou_by_option(voc: Path) -> None:
    folder = voc.parent / "labels"
    assert "boundary_miou" not in scored(folder, *data("PascalVOC", voc))
    assert 0 < scored(folder, *data("PascalVOC", voc), "--metrics+=BoundaryIoU")["boundary_miou"] < 1


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real data in shared/data")
def test_real_voc(tmp_path: Path) -> None:
    output = tmp_path / "voc.json"
    root = REAL / "voc" / "VOCdevkit" / "VOC2012"
    crosscoop("score", "--predictions", REAL / "voc" / "predictions_val", *data("PascalVOC", root), "--output", output)
    record = json.loads(output.read_text())
    assert record["miou"] == pytest.approx(0.669898186, abs=1e-6)
    assert record["pixel_accuracy"] == pytest.approx(0.971119011, abs=1e-6)
    assert len(record["absent_classes"]) == 3


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real data in shared/data")
def test_real_cityscapes_equals_the_official_scripts(tmp_path: Path) -> None:
    """Labels that are a hundred pixels to the right of the truth."""
    samples = Cityscapes(str(REAL / "cityscapes")).samples("val")
    labels, masks = [], [sample.mask_path for sample in samples if sample.mask_path]
    for sample, mask in zip(samples, masks, strict=True):
        shifted = np.roll(np.array(Image.open(mask)), 100, axis=1)
        labels.append(save(tmp_path / "labels" / f"{sample.name}.png", shifted))
    assert_official(scored(tmp_path / "labels", *data("Cityscapes", REAL / "cityscapes"), "--label-ids"), labels, masks)


@pytest.mark.parametrize(
    "form", ["{city}/{frame}", "{frame}", "{city}/{frame}_leftImg8bit", "{frame}_leftImg8bit", "run/val/{city}/{frame}"]
)
def test_names_of_all_forms(cityscapes: Path, form: str) -> None:
    folder, other = cityscapes.parent / "labels", cityscapes.parent / "other"
    for name in FRAMES:
        city, frame = name.split("/")
        path = other / f"{form.format(city=city, frame=frame)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{name}.png", path)
    options = (*data("Cityscapes", cityscapes), "--label-ids")
    assert scored(other, *options)["miou"] == scored(folder, *options)["miou"]


def test_folders_tell_apart_what_shares_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [*data("Folder", tmp_path), "--data.dataset.class_names=[a,b]", "--split val"]
    own.append("'--data.dataset.splits={val: {images: images, masks: masks}}'")
    for name, value in {"1": 0, "x/1": 1, "y/x/1": 0, "2": 1}.items():
        for kind in ("images", "masks", "labels"):
            save(tmp_path / kind / f"{name}.png", np.full(SIZE, value, np.uint8))
    save(tmp_path / "labels" / "3.png", np.full(SIZE, 77, np.uint8))
    save(tmp_path / "labels" / "._1.png", np.full(SIZE, 77, np.uint8))
    capsys.readouterr()
    assert scored(tmp_path / "labels", *own)["miou"] == 1
    name = tmp_path / "labels" / "3.png"
    assert f"1 PNG file whose name does not match any image of the split: {name}" in capsys.readouterr().out


def test_label_files_behind_links_and_of_other_formats(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = voc.parent / "labels"
    expected = scored(labels, *data("PascalVOC", voc))
    shutil.copytree(labels, labels / ".backup")
    shutil.copytree(labels, voc.parent / "elsewhere")
    for file in labels.glob("*.png"):
        file.unlink()
    (labels / "linked").symlink_to(voc.parent / "elsewhere")
    (voc.parent / "elsewhere" / "loop").symlink_to(labels)
    Image.new("L", SIZE).save(labels / "a.tif")
    assert scored(labels, *data("PascalVOC", voc)) == expected
    note = f"Ignored: 1 file (1 .tif), because label files must be PNGs: {labels / 'a.tif'}"
    assert note in capsys.readouterr().out


def test_all_faults_are_named_in_one_message(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = voc.parent / "labels"
    (folder / "sub").mkdir()
    shutil.copy(folder / f"{NAMES[0]}.png", folder / "sub")
    (folder / f"{NAMES[1]}.png").unlink()
    save(folder / f"{NAMES[2]}.png", np.zeros((10, 12), np.uint8))
    error = refused(capsys, "score", "--predictions", folder, *data("PascalVOC", voc))
    assert f"1 missing: {NAMES[1]}" in error
    assert f"1 ambiguous: {NAMES[0]} ({folder / NAMES[0]}.png and {folder / 'sub' / NAMES[0]}.png)" in error
    assert f"1 of another size: {folder / NAMES[2]}.png (got 10 x 12, expected 24 x 40)" in error
    save(folder / f"{NAMES[2]}.png", np.full(SIZE, 21, np.uint8))
    error = refused(capsys, "score", "--predictions", folder, *data("PascalVOC", voc))
    assert f"1 unusable: {folder / NAMES[2]}.png: got the mask values 21" in error
    assert not (folder / "metrics.json").exists()


def test_label_ids(cityscapes: Path, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cityscapes.parent / "labels"
    assert "add --label-ids" in refused(capsys, "score", "--predictions", folder, *data("Cityscapes", cityscapes))
    error = refused(capsys, "score", "--predictions", folder, *data("PascalVOC", voc), "--label-ids")
    assert "label_ids: got PascalVOC" in error
    save(folder / f"{FRAMES[0]}.png", np.full(SIZE, 34, np.uint8))
    error = refused(capsys, "score", "--predictions", folder, *data("Cityscapes", cityscapes), "--label-ids")
    assert f"{FRAMES[0]}.png: got the mask values 34" in error


def test_a_split_without_masks_is_refused(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = voc.parent / "labels"
    error = refused(capsys, "score", "--predictions", folder, *data("PascalVOC", voc), "--split test")
    assert "PascalVOC test: got no labelled pixels" in error


def test_configurations_of_all_forms(voc: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    group = {"dataset": {"class_path": "PascalVOC", "init_args": {"root": str(voc)}}, "batch_size": 6}
    nested = {**group, "dataset": "voc.yaml"}
    files: dict[str, Any] = {
        "parts/data.yaml": group,
        "parts/nested.yaml": nested,
        "parts/voc.yaml": group["dataset"],
        "train.yaml": {"network": {"strategy": "cross"}, "data": "parts/data.yaml", "trainer": "parts/none.yaml"},
        "nested.yaml": {"data": "parts/nested.yaml"},
        "config.yaml": {"seed_everything": 0, "predictions": {"folder": None}, "data": {**group, "seed": 0}},
    }
    for name, content in files.items():
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text(yaml.safe_dump(content))
    expected = scored(labels, *data("PascalVOC", voc))
    for name in ("parts/data.yaml", "train.yaml", "nested.yaml", "config.yaml"):
        assert scored(labels, "--config", tmp_path / "configs" / name) == expected
    elsewhere = voc.rename(tmp_path / "elsewhere")
    config = tmp_path / "configs" / "train.yaml"
    assert scored(labels, "--config", config, "--data.dataset.root", elsewhere) == expected


def test_what_is_no_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.yaml").write_text("trainer: {max_epochs: 2}")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name, message in {"other": "without data", "broken": "cannot be read", "absent": "No such file"}.items():
        options = ("--predictions x", "--config", tmp_path / f"{name}.yaml")
        assert message in refused(capsys, "score", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.dataset CamVid", "required: predictions"),
        ("--predictions x", "required: data"),
        ("--predictions x --data.dataset CamVid --foo 1", "unrecognized arguments: --foo"),
        ("--predictions x --data.dataset CamVid --label-ids maybe", "unrecognized arguments: maybe"),
        ("--predictions x --data.dataset CamVid --data.center_crop 0", "data.center_crop: got 0"),
        ("--predictions x --data.dataset Streets --data.dataset.num_val 1 --split val", "x, which is not a folder"),
        ("--predictions . --data.dataset Streets --split nothing", "nothing"),
    ],
)
def test_wrong_options(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "score", options)


def test_figures_of_a_run_are_not_replaced(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = voc.parent / "labels"
    before = sorted(folder.rglob("*"))
    crosscoop("score", "--predictions", folder, *data("PascalVOC", voc))
    assert sorted(folder.rglob("*")) == before  # nothing is written unless asked for
    crosscoop("score", "--predictions", folder, *data("PascalVOC", voc), "--output", folder)
    (folder / "metrics.json").write_text('{"stage": "test"}')
    error = refused(capsys, "score", "--predictions", folder, *data("PascalVOC", voc), "--output", folder)
    assert "contains the metrics of test" in error
    assert (folder / "metrics.json").read_text() == '{"stage": "test"}'


@pytest.mark.parametrize(("resize", "resize_masks"), [(None, False), ((12, 30), False), ((12, 30), True)])
@pytest.mark.parametrize("center_crop", [None, 10])
def test_what_is_evaluated_is_what_test_evaluates(
    voc: Path,
    resize: tuple[int, int] | None,
    resize_masks: bool,
    center_crop: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = SegmentationData(PascalVOC(str(voc)), resize=resize, resize_masks=resize_masks, center_crop=center_crop)
    if resize and center_crop and not resize_masks:
        with pytest.raises(CrosscoopError, match=r"data\.center_crop: got 10 with data\.resize \[12, 30\]"):
            module.evaluation_set("val")
        return
    with pytest.warns(UserWarning, match="not comparable with published ones"):
        evaluation_set = module.evaluation_set("val")
    for item in evaluation_set:
        save(voc.parent / "truth" / f"{item['name']}.png", item["mask"].numpy())
    options = [*data("PascalVOC", voc), f"--data.resize={json.dumps(resize)}", f"--data.center_crop={center_crop}"]
    options += [f"--data.resize_masks={json.dumps(resize_masks)}"]
    options = [option.replace(" ", "").replace("None", "null") for option in options]
    record = scored(voc.parent / "truth", *options)
    assert record["miou"] == 1
    assert record["protocol"] == {**module.protocol("val", 3), "inference": "label files"}
    if resize_masks or center_crop:
        assert "data.resize_masks" in refused(capsys, "score", "--predictions", voc.parent / "labels", *options)


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        crosscoop("score", "--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "crosscoop score --predictions labels --config configs/voc/parts/data.yaml" in said
    assert all(f"--{name} " in said for name in ("predictions", "config", "data", "split", "output"))
    assert "[--label-ids]" in said


# -- submit

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
def test_wrong_options_of_submit(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_commands_import_only_what_they_use(cityscapes: Path, tmp_path: Path) -> None:
    """`score`, `submit`, `check-data` and `report` without images, one after the other in one process."""
    run, labels = tmp_path / "run", ["--predictions", str(tmp_path / "labels"), *data("Cityscapes", cityscapes)]
    for file in (tmp_path / "labels").rglob("*.png"):
        save(file, LABEL_TO_TRAIN[np.array(Image.open(file))])
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"network": {}, "model": {}, "data": {}}))
    commands = [
        ["submit", *labels, "--split", "val", "--output", str(tmp_path / "val.zip")],
        ["check-data", *data("Cityscapes", cityscapes), "--workers", "0", "--output", str(tmp_path / "check.json")],
        ["report", str(run), "--num-images", "0", "--output", str(tmp_path / "report.html")],
        ["score", *labels, "--output", str(run / "metrics.json")],
    ]
    code = """
import json, sys
from crosscoop.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        assert end.code == 1, command  # faults of the data
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    process = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert all((tmp_path / name).exists() for name in ("check.json", "report.html"))
    loaded = [set(line.split()) for line in process.stdout.splitlines() if "jsonargparse" in line.split()]
    heavy = ("pytorch_lightning lightning_fabric timm torchmetrics albumentations matplotlib scipy wandb "
             "huggingface_hub onnxruntime pydantic")  # fmt: skip
    assert [each & set(heavy.split()) for each in loaded[:3]] == [set()] * 3
    assert loaded[3] & set(heavy.split()) - loaded[2] <= {"torchmetrics", "matplotlib", "scipy"}  # its metrics' base

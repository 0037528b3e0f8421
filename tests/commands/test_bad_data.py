"""Faults in the data: found by `check-data`, refused by `fit`, named when they happen later, skipped on request."""

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faulty import (
    FAULTS,
    IN_THE_HEADER,
    break_sample,
    copy_image,
    fit_options,
    image_of,
    mask_of,
    refusal,
    save,
    write,
)
from PIL import Image
from processes import in_ranks, ranks
from tiny import crosscoop

from crosscoop.data import Folder, SegmentationData
from crosscoop.data.datasets.folder import Split
from crosscoop.errors import CrosscoopError

BREAKING = "--data.check false --data.dataset.class_path faulty.Breaking"


def checked(config: Path, *options: object) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `check-data`."""
    output = config.parent / "report.json"
    try:
        crosscoop("check-data", "--config", config, "--output", output, "--workers 0", *options)
        code = 0
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        code = ended.code
    record: dict[str, Any] = json.loads(output.read_text())
    return code, record


# -- check-data


def test_data_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    code, record = checked(config)
    assert (code, record["faults"]) == (0, [])
    assert "No faults." in capsys.readouterr().out
    masks = [np.array(Image.open(mask_of(tmp_path, "train", index))) for index in range(4)]
    train = record["splits"]["train"]
    assert train["classes"]["tree"] == {"pixels": sum(int((mask == 1).sum()) for mask in masks), "images": 4}
    assert train["void_pixels"] == sum(int((mask == 255).sum()) for mask in masks)
    assert (train["images"], train["labelled_images"], train["official_images"]) == (4, 4, None)
    assert train["absent_classes"] == [] == record["notes"]
    assert list(record["splits"]) == ["train", "val"]


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_and_its_file_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config = write(tmp_path)
    path = break_sample(tmp_path, "train", 1, name)
    code, record = checked(config)
    assert code == 1
    messages = [fault["message"] for fault in record["faults"]]
    assert any(str(path) in message for message in messages)
    assert [part for part in FAULTS[name][2] if not any(part in message for message in messages)] == []
    assert any(str(path) in fault["files"] for fault in record["faults"])
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(("target", "splits"), [(("val", 0), ["train", "val"]), (("train", 1), ["train"])])
def test_the_same_image_twice_is_found(tmp_path: Path, target: tuple[str, int], splits: list[str]) -> None:
    config = write(tmp_path, suffix="png")
    copy = image_of(tmp_path, *target, "png")
    pixels = np.array(Image.open(image_of(tmp_path, "train", 0, "png")))
    save(copy, pixels, compress_level=1)  # other bytes, the same pixels
    code, record = checked(config)
    assert code == 1
    (fault,) = record["faults"]
    assert fault["splits"] == splits
    assert sorted(fault["files"]) == sorted([str(image_of(tmp_path, "train", 0, "png")), str(copy)])


def test_names_in_two_splits_are_noted(tmp_path: Path) -> None:
    config = write(tmp_path)
    text = config.read_text().replace("{list: train.txt}", "{images: images/train, masks: masks/train}")
    config.write_text(text.replace("list: train.txt", "images: images/train\n        masks: masks/train"))
    for path in (image_of(tmp_path, "val", 0), mask_of(tmp_path, "val", 0)):
        path.rename(path.with_stem("train0"))
    code, record = checked(config)
    assert code == 0
    assert "1 names are in more than one split: train0." in record["notes"]


def test_a_mask_that_is_missing_in_a_folder_is_named(tmp_path: Path) -> None:
    config = write(tmp_path)
    mask = break_sample(tmp_path, "val", 0, "vanished mask")
    code, record = checked(config)
    assert code == 1
    assert [str(mask) in fault["message"] for fault in record["faults"]] == [True]


def test_several_processes_and_the_limit_of_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    for index in range(3):
        break_sample(tmp_path, "train", index, "unknown class")
    code, record = checked(config, "--workers 2 --show 1")
    assert code == 1
    assert len(record["faults"]) == 3
    printed = capsys.readouterr().out
    assert "3 x unusable mask" in printed and "... and 2 more" in printed
    assert record["faults"] == checked(config)[1]["faults"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--workers=-1", "workers"),
        ("--nonsense 1", "nonsense"),
        ("--data.dataset.root {tmp}/none", "none"),
        ("--output {tmp}/report/x.json --workers 0", "report"),
    ],
)
def test_wrong_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    config = write(tmp_path)
    (tmp_path / "report").write_text("a file where a folder should be")
    assert message in refusal(capsys, "check-data", "--config", config, options.format(tmp=tmp_path))


# -- before training


@pytest.mark.parametrize(
    ("split", "name"), [*(("train", name) for name in IN_THE_HEADER), ("val", "lossy mask"), ("val", "vanished mask")]
)
def test_fit_refuses_what_the_headers_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, name: str
) -> None:
    config = write(tmp_path)
    path = break_sample(tmp_path, split, 1, name)
    message = refusal(capsys, "fit", fit_options(config), "--run", tmp_path / "run")
    named = image_of(tmp_path, split, 1) if (split, name) == ("val", "vanished mask") else path
    assert str(named) in message
    assert ("crosscoop check-data lists all" in message) == ("vanished" not in name)  # those were never listed


def test_fit_refuses_the_same_image_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    copy_image(tmp_path, ("train", 0), ("val", 1))
    message = refusal(capsys, "fit", fit_options(config), "--run", tmp_path / "run")
    assert str(image_of(tmp_path, "train", 0)) in message and str(image_of(tmp_path, "val", 1)) in message
    assert "in different splits" in message
    crosscoop("fit", fit_options(config), "--data.check false --run", tmp_path / "run")
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_images_of_one_size_in_bytes_are_not_taken_for_the_same(tmp_path: Path) -> None:
    config = write(tmp_path, suffix="bmp")
    assert len({path.stat().st_size for path in tmp_path.glob("images/*/*.bmp")}) == 1
    assert checked(config)[0] == 0
    crosscoop("fit", fit_options(config), "--run", tmp_path / "run")


def test_a_camera_that_was_turned_is_no_fault(tmp_path: Path) -> None:
    config = write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(image_of(tmp_path, "train", 0), np.zeros((48, 32, 3), np.uint8), exif=exif)
    crosscoop("fit", fit_options(config), "--run", tmp_path / "run")


# -- during training and evaluation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data without faults."""
    folder = tmp_path_factory.mktemp("trained")
    crosscoop("fit", fit_options(write(folder)), "--run", folder / "run")
    return folder / "run"


QUICK = [
    ("fit", "truncated image", 1),
    ("fit", "vanished mask", 0),
    ("test", "unknown class", 1),
    ("test", "RGB mask", 0),
]
"""A command, a fault and a number of workers; the other combinations are slow together."""


@pytest.mark.parametrize(
    ("command", "name", "workers"),
    [
        pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
        for each in product(["fit", "test"], FAULTS, [0, 1])
    ],
)
def test_a_fault_during_a_run_is_named(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, name: str, workers: int,
) -> None:  # fmt: skip
    config = write(tmp_path)
    split, (what, _, parts) = "train" if command == "fit" else "val", FAULTS[name]
    monkeypatch.setenv("BREAK", f"{split} {name}")
    if command == "fit":
        options = [fit_options(config), "--run", tmp_path / "run"]
    else:
        options = ["--ckpt_path", trained / "best.ckpt", "--run", tmp_path / "run"]
    message = refusal(
        capsys, command, *options, BREAKING, f"--data.dataset.root {tmp_path} --data.num_workers {workers}"
    )
    assert str((image_of if what == "image" else mask_of)(tmp_path, split, 1)) in message
    assert [part for part in parts if part not in message] == []
    assert len(message.splitlines()) == 1


# -- skipping


def batches(config: Path, **options: Any) -> list[Any]:
    """Two epochs of training batches."""
    dataset = yaml.safe_load(config.read_text())["dataset"]["init_args"]
    splits = {name: Split(**where) for name, where in dataset.pop("splits").items()}
    data = SegmentationData(
        Folder(**dataset, splits=splits), **{"batch_size": 2, "crop_size": 32, "num_workers": 0, **options}
    )
    loader, found = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found += list(loader)
    return found


def test_another_sample_stands_in_for_a_bad_one(tmp_path: Path) -> None:
    config = write(tmp_path, train=6)
    whole = batches(config, skip_bad_samples=True)
    bad = {
        f"images/train/train{index}": name for index, name in enumerate(["RGB mask", "vanished mask", "empty image"])
    }
    for index, name in enumerate(bad.values()):
        break_sample(tmp_path, "train", index, name)
    found = batches(config, skip_bad_samples=True)
    assert [len(batch["name"]) for batch in found] == [2] * 6
    assert not {name for batch in found for name in batch["name"]} & bad.keys()
    for before, after in zip(whole, found, strict=True):  # what is good stays, bit for bit
        for i, name in enumerate(before["name"]):
            if name not in bad:
                assert after["name"][i] == name
                assert torch.equal(after["image"][i], before["image"][i])
    missed = [name for batch in whole for name in batch["name"] if name in bad]
    skipped = [name for batch in found for name, _ in batch.get("skipped", [])]
    assert len(missed) == 6 <= len(skipped)
    assert set(skipped) == bad.keys()
    faults = {name: fault for batch in found for name, fault in batch.get("skipped", [])}
    assert all(str(tmp_path) in fault for fault in faults.values())

    again = batches(config, skip_bad_samples=True, num_workers=2)
    for one, other in zip(found, again, strict=True):
        assert (one["name"], one.get("skipped")) == (other["name"], other.get("skipped"))
        assert torch.equal(one["image"], other["image"])
    names = [[batch["name"] for batch in batches(config, skip_bad_samples=True, seed=seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_nothing_but_bad_samples_is_an_error(tmp_path: Path) -> None:
    config = write(tmp_path)
    for index in range(4):
        break_sample(tmp_path, "train", index, "unknown class")
    with pytest.raises(CrosscoopError, match=r"all 4 training samples are bad.*values 3"):
        batches(config, skip_bad_samples=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "skipped.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    config, run = write(tmp_path), tmp_path / "run"
    mask = break_sample(tmp_path, "train", 1, "16-bit mask")
    image = break_sample(tmp_path, "train", 2, "truncated image")
    options = f"--data.skip_bad_samples true --data.num_workers {workers} --trainer.max_epochs 2"
    crosscoop("fit", fit_options(config), options, "--run", run)
    rows = {row["sample"]: row for row in rows_of(run)}
    assert rows.keys() == {"images/train/train1", "images/train/train2"}
    assert str(mask) in rows["images/train/train1"]["fault"] and str(image) in rows["images/train/train2"]["fault"]
    assert all(int(row["times"]) >= 2 and row["first_epoch"] == "0" for row in rows.values())
    printed = capsys.readouterr().out
    assert "Epoch 0: 2 bad training samples skipped (images/train/train1, images/train/train2)" in printed
    times = sum(int(row["times"]) for row in rows.values())

    crosscoop("fit", "--resume --trainer.max_epochs 3 --run", run)  # the count goes on
    assert sum(int(row["times"]) for row in rows_of(run)) >= times + 2
    assert refusal(capsys, "fit", fit_options(config), "--run", tmp_path / "other")


def test_evaluation_never_skips(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    image = break_sample(tmp_path, "val", 1, "truncated image")
    skip = f"--data.skip_bad_samples true --data.dataset.root {tmp_path} --run {tmp_path / 'run'}"
    assert str(image) in refusal(capsys, "fit", fit_options(config), skip)
    assert str(image) in refusal(capsys, "test", "--ckpt_path", trained / "best.ckpt", skip)


def skip_in_a_rank(rank: int, config: Path, run: Path) -> None:
    crosscoop("fit", fit_options(config), ranks(2), "--data.skip_bad_samples true --data.num_workers 1 --run", run)


@pytest.mark.slow
def test_skipped_samples_of_all_ranks_are_listed(tmp_path: Path) -> None:
    config, run = write(tmp_path, train=8), tmp_path / "run"
    for index in range(3):
        break_sample(tmp_path, "train", index, "unknown class")
    assert in_ranks(tmp_path, 2, skip_in_a_rank, config, run) == [0, 0]
    assert {row["sample"] for row in rows_of(run)} == {f"images/train/train{index}" for index in range(3)}
    printed = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert [each.count("bad training samples skipped") for each in printed] == [1, 0]

"""Runs used from other folders, and data that has moved: looked for first, and named by its option."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import QUIET, crosscoop
from torch.distributed.run import parse_args

from crosscoop.files import note

TRAIN = (
    "--network.branches [test_resnet] --network.strategy none --network.channels 16 --trainer.max_epochs 1 "
    "--trainer.limit_test_batches 1 --trainer.logger CSVLogger --inference.flip true --config data.yaml --run run"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and a run whose data was given relative to it; look, but do not touch."""
    folder = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape, high in (("images", (32, 40, 3), 256), ("masks", (32, 40), 2)):
            (folder / "data" / kind / split).mkdir(parents=True)
            for i in range(2):
                values = random.integers(0, high, shape, np.uint8)
                Image.fromarray(values).save(folder / "data" / kind / split / f"{split}{i}.png")
    splits = {split: {"images": f"images/{split}", "masks": f"masks/{split}"} for split in ("train", "val")}
    dataset = {"root": "data", "class_names": ["background", "crack"], "splits": splits, "test_split": "val"}
    data = {"dataset": {"class_path": "Folder", "init_args": dataset}, "batch_size": 2, "crop_size": 32}
    data |= {"num_workers": 0, "resize": [16, 20]}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        crosscoop("fit", TRAIN, " ".join(QUIET))
    return folder


def refusal(capsys, *options):
    """The message with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        crosscoop(*options)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_test_takes_its_options_from_the_run_wherever_it_starts(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    crosscoop("test", "--run", place / "run", "--trainer.enable_progress_bar false --trainer.accelerator cpu")
    record = json.loads((place / "run/metrics.json").read_text())
    assert record["num_images"] == 1  # limit_test_batches
    assert record["protocol"]["inference"] == "single scale, with flip"
    assert record["protocol"]["evaluation"] == "whole images resized to 16 x 20, but masks at their own size"
    (logged,) = (place / "run").rglob("version_1/metrics.csv")
    with logged.open() as file:
        assert float(next(csv.DictReader(file))["test/miou"]) == pytest.approx(record["miou"])
    config = yaml.safe_load((place / "run/config.yaml").read_text())
    assert config["data"]["dataset"]["init_args"]["root"] == str(place / "data")
    counted = sum(sum(row) for row in json.loads((place / "run/confusion.json").read_text())["outputs"]["network"])
    assert counted == 32 * 40  # the mask's own pixels, not those of the resized image


def test_options_that_a_test_leaves_are_named(place, capsys):
    note.cache_clear()
    message = refusal(capsys, "validate", "--run", place / "run", "--data.dataset.root nowhere")
    assert "add --trainer.accelerator cpu" in message


@pytest.mark.parametrize(("command", "options"), [
    ("fit", "--network.branches [no_such_backbone] --network.pretrained true --run new"),  # before any weights
    ("test", "--run run"),
    ("export", "--run run --format onnx --int8"),
])  # fmt: skip
def test_missing_data_are_named_first(place, tmp_path, monkeypatch, capsys, command, options):
    monkeypatch.chdir(place)
    (place / "data").rename(place / "elsewhere")
    try:
        config = "--config data.yaml" if command == "fit" else ""
        message = refusal(capsys, command, options, config)
        assert f"data.dataset.root: got {place / 'data'}, which is not a folder" in message
        assert "--data.dataset.root FOLDER" in message
        if command == "export":
            crosscoop("report", "run", "--num-images 1 --output", tmp_path / "without.html")
            assert "--data.dataset.root FOLDER" in capsys.readouterr().err
            crosscoop("report", "run", "--num-images 1 --data.dataset.root elsewhere --output", tmp_path / "with.html")
            assert (tmp_path / "with.html").stat().st_size > (tmp_path / "without.html").stat().st_size
    finally:
        (place / "elsewhere").rename(place / "data")


def test_torchrun_leaves_our_options_alone():
    given = parse_args(["--nproc-per-node", "2", "-m", "crosscoop", "--", "fit", "--run", "x"])
    assert given.training_script == "crosscoop" and given.training_script_args[-3:] == ["fit", "--run", "x"]

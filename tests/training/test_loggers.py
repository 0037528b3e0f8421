"""What Weights & Biases, TensorBoard and CSV get of a run, read back as their own viewers would.

W&B, which keeps a state per process, runs in processes of its own.
"""

import csv
import json
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from test_interruption import in_a_process
from tiny import DATA, NETWORK, STREETS, crosscoop, fit, load

from crosscoop.prediction.pictures import colored
from crosscoop.version import __version__

EVERY_STEP = "--trainer.log_every_n_steps 1"
SCALARS = {
    *("train/loss", "train/loss/top", "train/loss/bottom", "lr/backbone", "lr/heads"),
    *("val/miou", "val/miou/top", "val/miou/bottom", "val/pixel_accuracy"),
    *("val/iou/sky", "val/iou/road", "val/iou/building"),
}


def logger(class_path, /, **options):
    """The options of a logger on the command line."""
    return f"--trainer.logger {class_path} " + " ".join(
        f"--trainer.logger.{key} '{value}'" for key, value in options.items()
    )


def history(folder):
    """The figures of a run's `history.csv`."""
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


# -- Weights & Biases


def wandb_records(path):
    """The records of an offline run: LevelDB's log format behind a header of 7 bytes, a protobuf message in each."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, message = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while position < len(content):
        left = 32768 - position % 32768  # in this block
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(content):  # not yet written
            return
        if kind in (1, 4):  # a whole message, or its last part
            yield Record.FromString(message)
            message = b""


def items(message):
    """Keys and values of a history or configuration record."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in message}


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory):
    """The folder of a run of two epochs, the rows of its offline history, its configuration, and its files."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb") / "run"
    options = f"{logger('WandbLogger', offline='true', project='t')} {EVERY_STEP} --trainer.max_epochs 2"
    options += " --pictures.num_images 2 --trainer.callbacks+=WatchGradients --trainer.callbacks.log_freq 1"
    process = in_a_process(folder, options, f"import os; os.chdir({str(folder.parent)!r})")
    output = process.read()
    assert process.returncode == 0, output
    assert {path.name for path in folder.parent.iterdir()} == {"run"}
    (offline,) = (folder / "wandb").glob("offline-run-*")
    (log,) = offline.glob("run-*.wandb")
    deadline = time.monotonic() + 60
    while not (records := list(wandb_records(log))) or not records[-1].HasField("exit"):
        assert time.monotonic() < deadline, "W&B has not written the end of the run"
    rows = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    config = {}
    for record in records:
        for message in (record.config.update, record.run.config.update):
            config |= items(message)
    return folder, rows, config, offline / "files"


def test_wandb_has_every_figure(wandb_run):
    folder, rows, _, _ = wandb_run
    assert SCALARS - {key for row in rows for key in row} == set()
    steps = {row["trainer/global_step"]: row["lr/backbone"] for row in rows if "lr/backbone" in row}
    assert steps == {step: pytest.approx(0.007 * (1 - step / 4) ** 0.9) for step in range(4)}
    figures = [row["val/miou"] for row in rows if "val/miou" in row]
    assert figures == pytest.approx([row["val/miou/ensemble"] for row in history(folder)])


def test_wandb_has_histograms_of_the_gradients(wandb_run):
    names = {key for row in wandb_run[1] for key in row if key.startswith("gradients/")}
    assert any(".backbone." in name for name in names) and any(".classifier." in name for name in names)


def test_wandb_has_the_whole_configuration(wandb_run):
    folder, _, config, _ = wandb_run
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: config[key] for key in written} == written
    assert config["crosscoop"] == __version__
    assert config["network"]["strategy"] == "cross_c1_c2" and config["model"]["optimizer"]["init_args"]["lr"] == 0.007


def test_wandb_has_pictures_with_switchable_masks(wandb_run):
    _, rows, _, files = wandb_run
    pictures = [{key: row[f"predictions/{key}"] for key in ("count", "filenames", "all_masks")}
                for row in rows if "predictions/count" in row]  # fmt: skip
    samples = [STREETS.samples("val")[index] for index in (0, 2)]
    assert len(pictures) == 2  # epochs
    for picture in pictures:
        assert picture["count"] == 2
        for sample, name, masks in zip(samples, picture["filenames"], picture["all_masks"], strict=True):
            np.testing.assert_array_equal(np.array(Image.open(files / name).convert("RGB")), sample.image())
            assert set(masks) == {"truth", "top", "bottom", "ensemble"}
            shown = {key: np.array(Image.open(files / mask["path"])) for key, mask in masks.items()}
            np.testing.assert_array_equal(shown["truth"], sample.mask())
            assert all(mask.shape == (32, 64) and mask.max() < 12 for key, mask in shown.items() if key != "truth")


class Recorded(WandbLogger):
    """A logger that keeps what it receives, instead of W&B."""

    kept: ClassVar[dict] = {}
    experiment, save_dir = SimpleNamespace(dir=""), ""

    def __init__(self):
        self.kept.clear()

    log_metrics = log_hyperparams = finalize = after_save_checkpoint = lambda self, *_, **__: None

    def log_image(self, key, images):
        self.kept[key] = Image.open(*images).size

    def log_table(self, key, columns, data):
        self.kept[key] = [columns, *data]


def test_wandb_has_the_confusion_matrix_and_where_the_branches_differ(tmp_path):
    fit(tmp_path / "run")
    crosscoop("test", "--run", tmp_path / "run", "--trainer.logger test_loggers.Recorded")
    with Image.open(tmp_path / "run/confusion.png") as picture:
        assert Recorded.kept["test/confusion"] == picture.size
    heading, *rows = Recorded.kept["test/branches"]
    assert heading[:3] == ["class", "only top right", "only bottom right"]
    record = json.loads((tmp_path / "run/branches.json").read_text())
    assert [row[0] for row in rows] == list(record) and rows[-1][1] == record["all"]["only_top"]


class Answer(BaseHTTPRequestHandler):
    """A server that answers."""

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.send_error(404)


@pytest.mark.parametrize("way", ["no server", "silent server", "no key"])
def test_wandb_without_server_or_key_is_kept_on_disk_and_resumed_as_one_run(tmp_path, monkeypatch, way):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    output = ""
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if way == "no key":
            threading.Thread(target=server.serve_forever, daemon=True).start()
        port = 9 if way == "no server" else server.server_port
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HOME", str(tmp_path))  # no login
        for epochs in (1, 2):
            options = f"{logger('WandbLogger', project='t', log_model='all')} --resume --trainer.max_epochs {epochs}"
            process = in_a_process(tmp_path / "run", options)
            output += process.read()
            assert process.returncode == 0, output
        if way == "no key":
            server.shutdown()
    assert output.count(f"wandb sync {tmp_path}/run/wandb/offline-run-*") == 2
    assert ("API key" if way == "no key" else "cannot be reached") in output
    assert output.count("without the checkpoints (log_model)") == 2
    runs = [path.name.split("-")[3] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert set(runs) == {(tmp_path / "run" / "wandb.id").read_text().strip()}


def test_wandb_whose_server_refuses_is_kept_on_disk(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
        process = in_a_process(tmp_path, logger("WandbLogger", project="t"))
        output = process.read()
        server.shutdown()
    assert process.returncode == 0 and "Traceback" not in output, output
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in output
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert any(record.HasField("history") for record in wandb_records(log))


@pytest.mark.parametrize("way", ["no server", pytest.param("offline", marks=pytest.mark.slow)])
def test_death_of_wandbs_process_does_not_end_training(tmp_path, monkeypatch, way):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    kill = """
import os, subprocess
from crosscoop.training.task import CooperativeSegmentation as Task
step, calls = Task.training_step, []
def training_step(*arguments):
    calls.append(1)
    if len(calls) == 5:
        subprocess.run(["pkill", "-KILL", "-P", str(os.getpid()), "wandb-core"], check=True)
    return step(*arguments)
Task.training_step = training_step
"""
    options = f"--trainer.max_epochs 4 {logger('WandbLogger', project='t', offline=str(way == 'offline').lower())}"
    process = in_a_process(tmp_path, f"{options} {EVERY_STEP}", kill)
    output = process.read()
    assert process.returncode == 0 and "Traceback" not in output, output
    assert load(tmp_path / "last.ckpt")["global_step"] == 8
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert output.count("W&B failed") == 1 and f"wandb sync {run}" in output
    (log,) = run.glob("run-*.wandb")
    rows = [items(record.history.item) for record in wandb_records(log) if record.HasField("history")]
    assert "train/loss" in rows[0]


# -- TensorBoard, CSV, none


@pytest.mark.parametrize("save_dir", ["", "."])
def test_tensorboard_has_figures_and_pictures_in_the_runs_folder(tmp_path, monkeypatch, save_dir):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", logger("TensorBoardLogger", save_dir=save_dir, name="board"), EVERY_STEP)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    events = loader.EventAccumulator(str(tmp_path / "run" / "board" / "version_0")).Reload()
    tags = events.Tags()
    assert SCALARS - set(tags["scalars"]) == set()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]
    assert events.Scalars("val/miou")[0].value == pytest.approx(history(tmp_path / "run")[0]["val/miou/ensemble"])
    assert tags["images"] == ["predictions/0", "predictions/1", "predictions/2"]
    strip = np.array(Image.open(BytesIO(events.Images("predictions/0")[0].encoded_image_string)))
    sample = STREETS.samples("val")[0]
    np.testing.assert_array_equal(strip[:, :64], sample.image())
    np.testing.assert_array_equal(strip[:, 64:128], colored(sample.mask(), STREETS.palette))
    assert strip.shape == (32, 5 * 64, 3)


def test_loggers_by_configuration_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv_logger = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "table"}}
    elsewhere = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "elsewhere"), "name": None}}
    (tmp_path / "loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [csv_logger, elsewhere]}}))
    fit(tmp_path / "run", "--config loggers.yaml", EVERY_STEP)
    for folder in (tmp_path / "run" / "table", tmp_path / "elsewhere"):
        with (folder / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert set(rows[0]) >= SCALARS
        assert [float(row["train/loss"]) > 0 for row in rows if row["train/loss"]] == [True, True]
        hyperparameters = yaml.safe_load((folder / "version_0" / "hparams.yaml").read_text())
        assert hyperparameters["network"]["strategy"] == "cross_c1_c2"
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [each["init_args"]["save_dir"] for each in written["trainer"]["logger"]] == [
        ".",
        str(tmp_path / "elsewhere"),
    ]


def test_without_a_logger_nothing_is_left_but_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", "--trainer.logger false", EVERY_STEP)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]


# -- a logger that is not installed


@pytest.mark.parametrize("way", ["not installed", "not importable"])
def test_missing_wandb_is_said_in_one_message(capsys, tmp_path, monkeypatch, way):
    if way == "not installed":
        missing = RequirementCache("crosscoop-has-no-such-package")
        monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", missing)
    else:
        monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as caught:
        options = logger("WandbLogger", offline="true", project="t")
        crosscoop("fit", " ".join([*NETWORK, *DATA]), "--run", tmp_path, options)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and "Traceback" not in output + errors
    assert errors.count("crosscoop: error: ") == 1 and "crosscoop[wandb,tensorboard]" in errors

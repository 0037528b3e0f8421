"""What people bring along from Lightning, on our command line: callbacks, profilers, limits and loggers."""

import csv
import sqlite3

import pytest
from test_training import read_history
from tiny import fit, load

ONE = "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1"
CALLBACKS = (
    "--trainer.callbacks+=LearningRateMonitor --trainer.callbacks+=DeviceStatsMonitor "
    "--trainer.callbacks+=ModelSummary --trainer.callbacks+=RichModelSummary --trainer.callbacks+=EarlyStopping "
    "--trainer.callbacks.monitor val/miou --trainer.callbacks.mode max --trainer.callbacks.stopping_threshold -1"
)


def test_callbacks_of_lightning_work_together(tmp_path, capsys):
    pytest.importorskip("psutil")
    fit(tmp_path, ONE, CALLBACKS, "--trainer.logger CSVLogger --trainer.max_epochs 3 --trainer.log_every_n_steps 1")
    assert len(read_history(tmp_path)) == 1  # stopped early
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        logged = set(next(csv.reader(file)))
    assert {"lr-SGD/backbone", "lr-SGD/heads", "DeviceStatsMonitor.on_train_batch_start/cpu_percent"} <= logged
    assert "Trainable params" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Simple", "Advanced", "PyTorch"])
def test_profilers_write_into_the_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", ONE, f"--trainer.profiler {name}Profiler --trainer.profiler.filename profile")
    assert (tmp_path / "run" / "fit-profile.txt").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_time_limit_ends_a_run_that_a_higher_one_resumes(tmp_path):
    fit(tmp_path, ONE, "--trainer.max_epochs 1000 --trainer.max_time 00:00:00:01")
    steps = load(tmp_path / "last.ckpt")["global_step"]
    assert 0 < steps < 1000
    more = f"--resume --trainer.max_epochs {steps + 1} --trainer.max_time"
    fit(tmp_path, ONE, more, "00:00:00:01")  # the time of all attempts counts
    assert load(tmp_path / "last.ckpt")["global_step"] == steps
    fit(tmp_path, ONE, more, "00:01:00:00")
    assert load(tmp_path / "last.ckpt")["global_step"] == steps + 1


def test_mlflow_has_every_figure_in_the_runs_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fit(tmp_path / "run", ONE, "--trainer.logger MLFlowLogger --trainer.log_every_n_steps 1")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as database:
        logged = {key for (key,) in database.execute("select key from metrics")}
    assert {"train/loss/all", "train/loss/top", "val/miou/all", "val/miou/top"} <= logged

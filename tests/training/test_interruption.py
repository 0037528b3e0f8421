"""A run that was broken off and resumed is the run that never was, bit for bit."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from processes import Python
from tiny import PowerCut, assert_equal, crosscoop, fit, load
from torch.nn.functional import dropout

from crosscoop import Fusion
from crosscoop.training.callbacks.checkpoints import StopSignals
from crosscoop.training.task import CooperativeSegmentation

EMA = "--trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 0.5"
NOISY = "--network.fusion test_interruption.Noisy"
OPTIONS = f"{NOISY} --data.dataset.num_train 12 --trainer.max_epochs 3 --data.photometric true"


class Noisy(Fusion):
    """Addition with dropout: a step with randomness of its own."""

    def forward(self, own, received):
        return own + dropout(received, 0.5, self.training)


def in_a_process(folder, options, prelude=""):
    """A training in a process of its own; `prelude` is code that it runs first."""
    code = f"import tiny, pathlib, test_interruption\n{prelude}\ntiny.fit(pathlib.Path({str(folder)!r}), {options!r})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return Python([sys.executable, "-c", code], start_new_session=True, **pipes)


def read_history(folder):
    with (folder / "history.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def assert_same(whole, parts):
    for name in ("last.ckpt", "best.ckpt"):
        one, other = load(whole / name), load(parts / name)
        for key in ("state_dict", "current_model_state", "averaging_state"):
            assert_equal(one.get(key, {}), other.get(key, {}))
        for key in ("epoch", "global_step", "lr_schedulers"):
            assert one[key] == other[key], key
        states = [each["optimizer_states"][0]["state"] for each in (one, other)]
        assert states[0].keys() == states[1].keys()
        for number, state in states[0].items():
            assert all(torch.equal(value, states[1][number][key]) for key, value in state.items() if value is not None)
        scores = [[state.get("best_model_score") for key, state in each["callbacks"].items() if "monitor" in key]
                  for each in (one, other)]  # fmt: skip
        assert scores[0] == scores[1] and len(scores[0]) == 1
        steps = [each["loops"]["fit_loop"]["epoch_loop.state_dict"] for each in (one, other)]
        assert steps[0] == steps[1]  # under which the loggers write
    assert read_history(whole) == read_history(parts)
    assert json.loads((whole / "metrics.json").read_text()) == json.loads((parts / "metrics.json").read_text())


class Cut(PowerCut):
    """The power cut of these tests."""


def cut_at(monkeypatch, hook, times):
    """Break off when Lightning calls a hook of the network for the n-th time."""
    original, calls = getattr(CooperativeSegmentation, hook), []

    def counting(self, *arguments):
        calls.append(1)
        if len(calls) == times:
            raise Cut
        return original(self, *arguments)

    monkeypatch.setattr(CooperativeSegmentation, hook, counting)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Gives the run of these options that was never broken off; look, but do not touch."""

    @cache
    def run(options):
        folder = tmp_path_factory.mktemp("whole") / "run"
        fit(folder, OPTIONS, options, EMA)
        return folder

    return run


@pytest.mark.parametrize(("hook", "times", "options", "own"), [  # own: what must not change the result
    ("training_step", 9, "", "--last.every_n_steps 1"),  # within the second epoch
    slow("training_step", 9, "", "--last.every_n_steps 1 --data.num_workers 2"),
    slow("training_step", 10, "--trainer.accumulate_grad_batches 2", "--last.every_n_steps 2"),
    ("validation_step", 5, "", "--data.num_workers 1"),
    slow("validation_step", 5, "--trainer.val_check_interval 0.5", ""),
    slow("training_step", 11, "--trainer.val_check_interval 0.5", "--last.every_n_steps 1"),
    slow("training_step", 5, "--trainer.max_epochs -1 --trainer.max_steps 14", "--last.every_n_steps 1"),
    ("training_step", 8, "--trainer.max_epochs -1 --trainer.max_steps 14", ""),  # from the end of an epoch
    slow("training_step", 8, "--trainer.check_val_every_n_epoch 2", "--last.every_n_steps 1"),
])  # fmt: skip
def test_resumed_run_is_the_uninterrupted_one(whole_run, tmp_path, monkeypatch, hook, times, options, own):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, hook, times)
        fit(tmp_path, OPTIONS, options, own, EMA)
    crosscoop("fit", "--run", tmp_path, "--resume")
    assert_same(whole_run(options), tmp_path)


@pytest.mark.parametrize(("kills", "length"), [(2, ""), slow(20, "--trainer.max_epochs 21")])
def test_run_that_is_killed_at_random_moments_is_the_uninterrupted_one(whole_run, tmp_path, kills, length):
    options = f"{OPTIONS} {length} --data.num_workers 1 --last.every_n_steps 1"
    options += f" --trainer.callbacks null {EMA}"  # not twice in a resumed run
    prelude = """
from crosscoop.training.task import CooperativeSegmentation as Task
step = Task.training_step
Task.training_step = lambda *arguments: print("step", flush=True) or step(*arguments)
"""
    moments = random.Random(kills)
    for _ in range(kills):
        process = in_a_process(tmp_path, f"{options} --resume", prelude)
        lines = iter(process.pipe.readline, b"")
        assert all(b"step\n" in lines for _ in range(moments.randint(1, 6))), "the run has ended"
        time.sleep(moments.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.read()
        assert process.returncode == -signal.SIGKILL
    crosscoop("fit", "--run", tmp_path, "--resume")
    assert_same(whole_run(length), tmp_path)


def test_checkpoint_half_written_does_not_count(whole_run, tmp_path):
    prelude = (
        "import os, signal, torch\nwrite, calls = torch.save, []\n"
        + """
def save(content, file):
    calls.append(1)
    write(content, file)
    if len(calls) == 5:
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
"""
    )
    process = in_a_process(tmp_path, f"{OPTIONS} {EMA}", prelude)
    process.read()
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.ckpt"))) == 1
    crosscoop("fit", "--run", tmp_path, "--resume")
    assert list(tmp_path.glob(".*.ckpt")) == []
    assert_same(whole_run(""), tmp_path)


# -- signals


@pytest.mark.parametrize(("number", "where", "options", "own"), [
    (signal.SIGTERM, "training_step", "", "--data.num_workers 1"),
    (signal.SIGUSR1, "validation_step", "", ""),
    (signal.SIGINT, "training_step", "--trainer.accumulate_grad_batches 2", ""),
])  # fmt: skip
def test_signal_saves_the_state_and_says_how_to_go_on(whole_run, tmp_path, number, where, options, own):
    parts = tmp_path / "a run"
    prelude = f"""
import os
from crosscoop.training.task import CooperativeSegmentation as Task
step, calls = Task.{where}, []
def signalled(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.killpg(os.getpgid(0), {int(number)})
    return step(*arguments)
Task.{where} = signalled
"""
    process = in_a_process(parts, f"{OPTIONS} {options} {own} {EMA}", prelude)
    output = process.read()
    assert process.returncode == 128 + number, output
    assert f"crosscoop fit --run '{parts}' --resume" in output and "Traceback" not in output
    step = {"training_step": 3, "validation_step": 6}[where] // (2 if "accumulate" in options else 1)
    assert load(parts / "last.ckpt")["global_step"] == step + ("accumulate" in options)
    crosscoop("fit", "--run", parts, "--resume")
    assert_same(whole_run(options), parts)


def test_signal_before_the_first_step_leaves_a_run_to_begin(tmp_path):
    prelude = """
import os, signal
from crosscoop.data import Streets
signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored
Streets.prepare = lambda self: os.kill(os.getpid(), signal.SIGINT)
"""
    process = in_a_process(tmp_path, OPTIONS, prelude)
    output = process.read()
    assert process.returncode == 130 and "Traceback" not in output, output


# -- losses that are no numbers


def poisoned(monkeypatch, *steps):
    """Make the loss of these steps nan."""
    original, calls = CooperativeSegmentation.training_step, []

    def step(self, batch, batch_idx):
        calls.append(batch["name"])
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if len(calls) in steps else loss

    monkeypatch.setattr(CooperativeSegmentation, "training_step", step)
    return calls


def test_nan_stops_the_run_names_the_samples_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    calls = poisoned(monkeypatch, 8)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, OPTIONS)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and all(name in message for name in calls[7]) and "--resume" in message
    checkpoint = load(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 6
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_nan_steps_can_be_left_out_up_to_a_number(tmp_path, monkeypatch):
    from crosscoop.training.callbacks import NonFinite

    kept = []
    look = NonFinite.on_before_optimizer_step

    def looking(self, trainer, module, optimizer):
        before = self.skipped
        look(self, trainer, module, optimizer)
        if self.skipped > before:
            kept.append({key: value.clone() for key, value in module.state_dict().items()})
            kept.append(load(tmp_path / "last.ckpt")["state_dict"])

    monkeypatch.setattr(NonFinite, "on_before_optimizer_step", looking)
    poisoned(monkeypatch, 7)
    fit(tmp_path, OPTIONS, "--nonfinite.max_skips 1 --trainer.max_epochs 2")
    assert_equal(*kept)  # also the statistics of batch norm
    checkpoint = load(tmp_path / "last.ckpt")
    assert checkpoint["callbacks"]["NonFinite"] == {"skipped": 1}
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    with pytest.raises(SystemExit):
        poisoned(monkeypatch, 2)
        crosscoop("fit", "--run", tmp_path, "--resume --trainer.max_epochs 3")


# -- a disk that takes no more


def test_full_disk_ends_the_run_with_the_last_whole_checkpoint(tmp_path, monkeypatch, capsys):
    write, calls = torch.save, []

    def save(content, file):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, OPTIONS)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and "No space left on device" in message and "is kept" in message
    assert load(tmp_path / "last.ckpt")["global_step"] in (6, 12) and list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("options", ["", "--model.optimizer AdamW", EMA])
def test_too_little_room_is_said_before_training(tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: (10**9, 10**9, 10**6))
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "run", options)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and str(tmp_path) in message
    assert not list((tmp_path / "run").glob("*.ckpt"))
    monkeypatch.undo()
    fit(tmp_path / "run", options)
    size = (tmp_path / "run" / "last.ckpt").stat().st_size / 1e6
    (reckoned,) = re.findall(r"expected (\d+) MB for 3 checkpoints", message)
    assert float(reckoned) / 3 == pytest.approx(size, rel=0.1)


def test_unwritable_folder_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "file" / "run", OPTIONS)
    assert caught.value.code == 2 and "--run" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("left", [
    "kilobytes(100)",  # no room for a checkpoint
    pytest.param("0", marks=pytest.mark.slow),  # nor for history.csv
])  # fmt: skip
def test_disk_that_fills_up_ends_the_run_with_the_last_whole_checkpoint(small_disk, left):
    prelude = f"""
import os
from crosscoop.training.task import CooperativeSegmentation as Task
kilobytes = lambda number: 1024 * number
step, calls = Task.validation_step, []
def fill(*arguments):
    calls.append(1)
    if len(calls) == 5:
        with open({str(small_disk / "other")!r}, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                file.truncate(max(file.tell() - {left}, 0))
    return step(*arguments)
Task.validation_step = fill
"""
    process = in_a_process(small_disk / "run", OPTIONS, prelude)
    output = process.read()
    assert process.returncode == 2 and "Traceback" not in output, output
    assert "No space left on device" in output and "--resume" in output
    assert ("history.csv" if left == "0" else ".ckpt could not be written") in output
    assert load(small_disk / "run" / "last.ckpt")["global_step"] in (6, 12)
    assert list((small_disk / "run").glob(".*")) == []
    (small_disk / "other").unlink()
    crosscoop("fit", "--run", small_disk / "run", "--resume")
    assert load(small_disk / "run" / "last.ckpt")["global_step"] == 18


def test_moved_run_goes_on_with_its_best_score(tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    options = f"{OPTIONS} --checkpoint.mode min"  # the best is the first
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "training_step", 14)  # in the last epoch
        fit(before, options)
    before.rename(after)
    crosscoop("fit", "--run", after, "--resume")
    (state,) = (state for key, state in load(after / "last.ckpt")["callbacks"].items() if "monitor" in key)
    scores = [float(row["val/miou/ensemble"]) for row in read_history(after)]
    assert len(scores) == 3 and min(scores) == scores[0] < min(scores[1:])
    assert float(state["best_model_score"]) == pytest.approx(scores[0]) and not before.exists()
    assert state["best_model_path"] == str(after / "best.ckpt") and load(after / "best.ckpt")["global_step"] == 6


def test_checkpoint_before_a_runs_configuration_counts(tmp_path):
    fit(tmp_path / "first")
    options = f"--ckpt_path {tmp_path}/first/last.ckpt --config {tmp_path}/first/config.yaml --trainer.max_epochs 2"
    crosscoop("fit", options, "--run", tmp_path / "second")
    assert read_history(tmp_path / "second")[:1] == read_history(tmp_path / "first")
    assert load(tmp_path / "second" / "last.ckpt")["global_step"] == 4


def test_a_signal_told_twice_is_one(monkeypatch):
    signals, now = StopSignals(), 100.0
    signals.is_child, signals.trainer = False, SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    signals._note(signal.SIGTERM, None)
    now = 100.2
    signals._note(signal.SIGTERM, None)  # SLURM's, and that of the process that started this one
    assert signals.received == signal.SIGTERM
    now = 102.0
    with pytest.raises(SystemExit):
        signals._note(signal.SIGTERM, None)

"""Lightning's options on our command line: each works, or is refused in one line that names it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_training import RECORD, TINY, learning_rates, read_history, refusal
from tiny import DATA, NETWORK, QUIET, PowerCut, Recorder, assert_equal, crosscoop, fit, load

from crosscoop import cli
from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.errors import CrosscoopError
from crosscoop.files import expanded
from crosscoop.training.callbacks import Progress

CPU = "--trainer.accelerator cpu"


# -- refusals


@pytest.mark.parametrize(("options", "parts"), [
    ("--trainer.strategy ddp_findunused", ["trainer.strategy", "ddp_findunused", "ddp_find_unused_parameters_true"]),
    ("--trainer.strategy fsdp", ["trainer.strategy", "fsdp", "not supported"]),
    ("--trainer.strategy FSDPStrategy", ["trainer.strategy", "FSDPStrategy", "expected auto, ddp"]),
    (f"{CPU} --trainer.devices -1", ["trainer.devices", "-1"]),
    ("--trainer.val_check_interval 1000", ["val_check_interval", "1000"]),
    ("--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val_loss", ["val_loss", "val/miou"]),
    ("--trainer.callbacks+=Timer --trainer.callbacks.duration soon", ["soon"]),
    ("--trainer.callbacks+=LearningRateFinder", ["LearningRateFinder", "model.optimizer.lr"]),
    ("--trainer.callbacks+=BatchSizeFinder", ["BatchSizeFinder", "data.batch_size"]),
    ("--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1", ["EMAWeightAveraging"]),
    ("--model.scheduler OneCycleLR --model.scheduler.max_lr 1 --model.scheduler.total_steps 1", ["got 1", "2 steps"]),
    ("--model.scheduler OneCycleLR --model.scheduler.max_lr 1 --trainer.max_epochs -1", ["trainer.max_epochs"]),
    ("--model.scheduler torch.optim.lr_scheduler.ReduceLROnPlateau", ["model.scheduler.monitor"]),
    ("--model.scheduler ReduceLROnPlateau --model.scheduler.monitor val_miou", ["val_miou", "val/miou"]),
    ("--model.scheduler ExponentialLR --model.scheduler.gamma 0.9 --trainer.callbacks+=BackboneFinetuning", ["frozen"]),
])  # fmt: skip
def test_refuses_in_one_line(capsys, tmp_path, options, parts):
    message = refusal(capsys, "fit", TINY, " ".join(QUIET), "--trainer.max_epochs 1 --run", tmp_path, options)
    assert [part for part in parts if part not in message] == []


def test_fault_of_a_logger_is_told_in_one_line(capsys, tmp_path):
    options = "--trainer.logger WandbLogger --trainer.logger.offline true --trainer.logger.log_model all"
    assert "offline" in refusal(capsys, "fit", TINY, "--run", tmp_path, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_gpus_that_are_not_there(capsys, tmp_path):
    message = refusal(capsys, "fit", TINY, "--run", tmp_path, "--trainer.accelerator gpu --trainer.devices 64")
    assert "trainer.accelerator: got gpu" in message


def test_errors_of_the_program_keep_their_stack_trace(tmp_path, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.loops.fit_loop._FitLoop.setup_data", lambda self: self.nonsense)
    with pytest.raises(AttributeError, match="nonsense"):
        fit(tmp_path)


@pytest.mark.parametrize("options", [
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/miou",
    "--checkpoint.monitor train/loss",
    "--model.scheduler ReduceLROnPlateau --model.scheduler.monitor val/miou",
])  # fmt: skip
def test_figures_followed_in_the_wrong_direction_are_named(tmp_path, options):
    with pytest.warns(UserWarning, match="selects the worst (val/miou|train/loss) as the best"):
        fit(tmp_path, options)


# -- what works


@pytest.mark.parametrize(("given", "used"), [("ddp_spawn", "ddp"), ("ddp_fork_find_unused_parameters_true", None)])
def test_launchers_of_notebooks_become_ours(given, used):
    from jsonargparse import Namespace

    from crosscoop.training.trainer_options import check_options

    trainer = Namespace(val_check_interval=1.0, strategy=given, accelerator="cpu", devices=2, callbacks=None)
    check_options(Namespace(trainer=trainer))
    assert trainer.strategy == (used or "ddp_find_unused_parameters_true")


def test_timer_by_its_name(tmp_path):
    fit(tmp_path, "--trainer.callbacks+=Timer --trainer.callbacks.duration 00:00:10:00")
    timer = yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["callbacks"][0]
    assert timer["init_args"]["interval"] == "step"


@pytest.mark.parametrize("given", ["CSVLogger", "TensorBoardLogger", "[CSVLogger, TensorBoardLogger]"])
def test_loggers_without_a_folder_write_into_the_runs(tmp_path, monkeypatch, given):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", f"--trainer.logger '{given}'")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name, file in (("CSV", "metrics.csv"), ("TensorBoard", "events.out*")):
        assert bool(list((tmp_path / "run").rglob(file))) == (name in given)


def test_plateau_lowers_the_rate_after_validations(tmp_path):
    options = (
        "--model.scheduler ReduceLROnPlateau --model.scheduler.monitor train/loss --model.scheduler.patience 0 "
        "--model.scheduler.threshold 1000"
    )
    fit(tmp_path, RECORD, "--trainer.max_epochs 4", options)
    first, *others = np.array(Recorder.latest.learning_rates)[::2, 0]
    np.testing.assert_allclose(others, [first / 10, first / 100, first / 1000], rtol=1e-6)


def test_one_cycle_takes_its_steps_from_the_trainer(tmp_path):
    rates = learning_rates(tmp_path, "--model.scheduler OneCycleLR --model.scheduler.max_lr 0.1")
    expected = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD([torch.zeros(1)]), 0.1, total_steps=12)
    assert rates[0, 0] == pytest.approx(0.004) and rates[:, 0].argmax() in (2, 3)
    assert rates[-1, 0] < 0.01 and expected.total_steps == 12


def test_longer_run_than_a_schedule_is_told_in_one_line(capsys, tmp_path):
    fit(tmp_path, "--model.scheduler OneCycleLR --model.scheduler.max_lr 0.1")
    message = refusal(capsys, "fit", "--run", tmp_path, "--resume --trainer.max_epochs 3")
    assert "torch.optim rejected an option: Tried to step" in message


def test_backbone_finetuning_thaws_the_backbones_of_all_branches(tmp_path):
    options = "--trainer.callbacks+=BackboneFinetuning --trainer.callbacks.unfreeze_backbone_at_epoch 2"
    options += " --trainer.max_epochs 4 --checkpoint.save_top_k -1"
    fit(tmp_path, RECORD, options)
    first = Recorder.latest.first
    changed = []
    for epoch in (0, 1, 2, 3):
        (path,) = tmp_path.glob(f"epoch={epoch}-*.ckpt")
        state = load(path)["state_dict"]
        changed.append({(key.split(".")[2], ".backbone." in key) for key in state
                        if state[key].ndim == 4 and not torch.equal(state[key], first[key])})  # fmt: skip
    heads, backbones = {("0", False), ("1", False)}, {("0", True), ("1", True)}
    assert not changed[0] & backbones and not changed[1] & backbones
    assert heads <= changed[0] and backbones <= changed[2]
    rates = [row for row in Recorder.latest.learning_rates if len(row) == 3]
    poly = [0.007 * (1 - step / 8) ** 0.9 for step in range(8)]
    assert [row[1] for row in rates] == pytest.approx(poly[4:])
    assert [row[2] for row in rates] == pytest.approx([poly[4] / 10] * 2 + [poly[4] / 5] * 2)
    assert not [key for key in first if key.startswith("backbone")]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_true_precision_trains_and_is_tested(tmp_path, precision, dtype):
    fit(tmp_path, RECORD, f"--trainer.precision {precision} --trainer.num_sanity_val_steps 1")
    assert Recorder.latest.dtypes == {dtype}
    assert all(value.isfinite().all() for value in load(tmp_path / "last.ckpt")["state_dict"].values())
    crosscoop("test", "--run", tmp_path, f"--trainer.precision {precision} --trainer.accelerator cpu")


def test_operation_that_a_device_lacks_is_named(capsys, tmp_path, monkeypatch):
    def lacking(*_):
        raise NotImplementedError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr("crosscoop.training.task.CooperativeSegmentation.training_step", lacking)
    message = refusal(capsys, "fit", TINY, " ".join(QUIET), "--run", tmp_path, "--trainer.max_epochs 1")
    assert "trainer.precision" in message and "slow_conv2d_cpu in Half" in message


# -- the best checkpoint, and the further ones


@pytest.mark.parametrize("kept", [2, -1])
def test_best_checkpoint_is_the_best_however_many_are_kept(tmp_path, kept):
    # the best one is the first: every further epoch would overwrite it
    options = f"--checkpoint.monitor epoch --checkpoint.mode min --checkpoint.save_top_k {kept}"
    fit(tmp_path, options, "--trainer.max_epochs 2")
    crosscoop("fit", "--run", tmp_path, "--resume --trainer.max_epochs 4")
    assert load(tmp_path / "best.ckpt")["epoch"] == 0 and load(tmp_path / "last.ckpt")["epoch"] == 3
    further = {load(path)["epoch"]: path.name for path in tmp_path.glob("epoch=*.ckpt")}
    assert further == {epoch: f"epoch={epoch}-step={2 * epoch + 2}.ckpt" for epoch in range(2 if kept == 2 else 4)}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_best_checkpoint_stays_when_a_resumed_run_keeps_another_number(tmp_path, before, after):
    fit(tmp_path, f"--checkpoint.monitor epoch --checkpoint.save_top_k {before}", "--trainer.max_epochs 2")
    crosscoop("fit", "--run", tmp_path, f"--resume --trainer.max_epochs 5 --checkpoint.save_top_k {after}")
    assert load(tmp_path / "best.ckpt")["epoch"] == 4


def test_figures_are_those_of_the_best_checkpoint_where_epochs_are_equal(tmp_path):
    fit(tmp_path, "--model.optimizer.lr 0 --trainer.max_epochs 2 --model.optimizer.weight_decay 0")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    values = [row["val/miou/ensemble"] for row in read_history(tmp_path)]
    best = load(tmp_path / "best.ckpt")["epoch"]
    assert metrics["epoch"] == best == values.index(max(values))


@pytest.mark.parametrize("options", [
    "--trainer.limit_val_batches 0",
    "--trainer.check_val_every_n_epoch 5",
    "--trainer.max_steps 1 --trainer.max_epochs -1",
])  # fmt: skip
def test_run_without_a_validation_has_its_last_checkpoint(tmp_path, capsys, options):
    fit(tmp_path, options)
    assert "No best.ckpt: nothing was validated" in capsys.readouterr().out
    assert not (tmp_path / "best.ckpt").exists()
    assert find_checkpoint(None, str(tmp_path)) == tmp_path / "last.ckpt"
    assert f"using {tmp_path}/last.ckpt" in capsys.readouterr().err


def test_commands_take_the_last_checkpoint_of_a_run_without_a_best_one(tmp_path, capsys):
    run = tmp_path / "run"
    fit(run, "--trainer.limit_val_batches 0")
    crosscoop("test", "--run", run, CPU)
    crosscoop("export", "--run", run, "--format safetensors")
    crosscoop("report", run, "--output", tmp_path / "report.html")
    assert (run / "last.safetensors").exists() and "there is no" not in (tmp_path / "report.html").read_text()
    assert capsys.readouterr().err.count("has no best.ckpt") >= 2
    assert yaml.safe_load((run / "test.yaml").read_text())["ckpt_path"] == str(run / "last.ckpt")


def test_backbones_that_had_thawed_train_on_in_a_resumed_run(tmp_path):
    thaw = "--trainer.callbacks+=BackboneFinetuning --trainer.callbacks.unfreeze_backbone_at_epoch 1"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, thaw, "--trainer.max_epochs 4")
    with pytest.raises(PowerCut):
        fit(parts, thaw, "--trainer.max_epochs 4 --trainer.callbacks+=tiny.Stopper --trainer.callbacks.epoch 3")
    crosscoop("fit", "--run", parts, "--resume --trainer.callbacks null", thaw)
    assert_equal(load(whole / "last.ckpt")["state_dict"], load(parts / "last.ckpt")["state_dict"])


def test_thawing_on_several_devices_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.Trainer.world_size", 2)
    options = "--trainer.max_epochs 1 --trainer.callbacks+=BackboneFinetuning"
    assert "drift apart on 2 devices" in refusal(capsys, "fit", TINY, " ".join(QUIET), "--run", tmp_path, options)


def test_words_behind_torchruns_separator_are_ours(capsys):
    crosscoop("--", "--version")
    assert capsys.readouterr().out.startswith("crosscoop ")


def test_finetuned_run_and_a_plain_one_have_the_same_keys(tmp_path):
    fit(tmp_path / "plain")
    fit(tmp_path / "tuned", "--trainer.callbacks+=BackboneFinetuning")
    one, other = (load(tmp_path / name / "last.ckpt")["state_dict"] for name in ("plain", "tuned"))
    assert list(one) == list(other)


# -- home folders and variables in paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PLACE", str(folder))
    monkeypatch.delenv("NOWHERE", raising=False)
    return folder


def test_home_and_variables_mean_the_same_everywhere(home, capsys):
    def main(way, command, root, *others):
        run = f"{root}/runs/a"
        logger = {"class_path": "CSVLogger", "init_args": {"save_dir": f"{root}/logs"}}
        Path("given.yaml").write_text(yaml.safe_dump({"run": run, "trainer": {"logger": logger}}))
        named = {"option": ["--run", run], "equals": [f"--run={run}"], "yaml": ["--config=given.yaml"]}[way]
        cli.main([command, *named, *others])

    options = [*NETWORK, *DATA, *QUIET, "--trainer.max_epochs", "1"]
    main("yaml", "fit", "~", *options)
    before = (home / "runs/a/last.ckpt").read_bytes()
    for way, root in [("option", "~"), ("option", "$PLACE"), ("equals", "${PLACE}"), ("yaml", "$PLACE")]:
        with pytest.raises(SystemExit):
            main(way, "fit", root, *options, "--seed_everything", "7")
        assert "already contains a run" in capsys.readouterr().err
    assert (home / "runs/a/last.ckpt").read_bytes() == before
    main("equals", "fit", "$PLACE", *options, "--resume", "--trainer.max_epochs", "2")
    assert load(home / "runs/a/last.ckpt")["epoch"] == 1
    for root in ("~", "${PLACE}"):
        cli.main(["test", f"--run={root}/runs/a", "--trainer.accelerator=cpu", "--pictures.num_images=0"])
    assert [path.name for path in Path().iterdir()] == ["given.yaml"]
    assert (home / "logs").is_dir()


def test_strings_of_a_configuration_are_expanded_as_a_shell_does(home):
    given = {"root": "~/d", "list": ["$PLACE/a", "a/${PLACE}", "~", 3, None], "name": "a~b", "text": "$X1"}
    with pytest.raises(CrosscoopError, match="X1 is not set"):
        expanded(given)
    given["text"] = "costs $X1"
    assert expanded(given) == {
        "root": f"{home}/d", "list": [f"{home}/a", f"a/{home}", str(home), 3, None], "name": "a~b", "text": "costs $X1",
    }  # fmt: skip
    for wrong in ("$NOWHERE/runs", "data/$NOWHERE", "~nobody-of-that-name/runs"):
        with pytest.raises(CrosscoopError, match=r"NOWHERE|nobody"):
            expanded(wrong)


def test_progress_tells_loss_miou_and_the_time_left(tmp_path, monkeypatch):
    shown, original = [], Progress.get_metrics
    monkeypatch.setattr(Progress, "get_metrics", lambda *given: shown.append(original(*given)) or shown[-1])
    fit(tmp_path / "run", "--trainer.enable_progress_bar true --trainer.max_epochs 2")
    assert list(shown[-1]) == ["train/loss", "val/miou", "left"] and shown[-1]["left"] == "0 s"
    fit(tmp_path / "own", "--trainer.enable_progress_bar true --trainer.callbacks RichProgressBar")

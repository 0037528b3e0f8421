"""The commands `fit`, `validate` and `test`, from end to end, and what a training does on the way."""

import copy
import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from tiny import DATA, NETWORK, STREETS, PowerCut, Recorder, assert_equal, count, crosscoop, fit, load, miou
from torch import nn

import crosscoop as package
from crosscoop.data import SegmentationData
from crosscoop.data.augment import Augmentation
from crosscoop.network import CooperativeNetwork, Strategy, create_network
from crosscoop.network.cost import cost_by_part, count_macs
from crosscoop.network.fusion import Add
from crosscoop.training.task import CooperativeSegmentation

RECORD = "--trainer.callbacks+=tiny.Recorder"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs; look, but do not touch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(folder, "--trainer.max_epochs 2", RECORD)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to work on."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def read_counts(folder):
    """Confusion matrices by output name; the last column holds labels that are no class."""
    outputs = json.loads((folder / "confusion.json").read_text())["outputs"]
    return {name: np.array(counts)[:, :-1] for name, counts in outputs.items()}


def read_history(folder):
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def network_of(checkpoint):
    """The network of a checkpoint, built by hand."""
    network = create_network(["test_resnet", "test_byobnet"], 12, channels=16, separable=True)
    state = load(checkpoint)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    return network.eval()


def predict(network, sample):
    """Labels by output name, without any of the task's code."""
    image = torch.from_numpy(sample.image()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        top, bottom = network(image)
    return {name: logits[0].argmax(0).numpy() for name, logits in
            {"top": top, "bottom": bottom, "ensemble": top + bottom}.items()}  # fmt: skip


def counts_by_hand(checkpoint):
    network, samples = network_of(checkpoint), STREETS.samples("test")
    return sum_by_name({name: count(labels, sample.mask(), 12) for name, labels in predict(network, sample).items()}
                       for sample in samples)  # fmt: skip


def sum_by_name(rows):
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in rows[0]}


# -- what a run leaves


def test_fit_leaves_checkpoints_configuration_history_and_figures(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "config.yaml", "history.csv", "metrics.json"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["network"]["branches"] == ["test_resnet", "test_byobnet"] and config["data"]["batch_size"] == 2
    history, metrics = read_history(trained), read_metrics(trained)
    assert [(row["epoch"], row["step"]) for row in history] == [(0, 2), (1, 4)]
    assert all(0 < row["train/loss"] < 20 and row["seconds"] > 0 for row in history)
    best = max(history, key=lambda row: row["val/miou/ensemble"])
    assert metrics["stage"] == "fit" and metrics["protocol"]["split"] == "val" and metrics["num_images"] == 3
    assert metrics["epoch"] == best["epoch"] == load(trained / "best.ckpt")["epoch"]
    for name, figures in metrics["outputs"].items():
        assert figures["miou"] == best[f"val/miou/{name}"]


def test_last_checkpoint_is_of_the_last_epoch_even_if_the_best_is_not(tmp_path):
    fit(tmp_path, "--trainer.max_epochs 3 --checkpoint.monitor epoch --checkpoint.mode min")
    assert load(tmp_path / "best.ckpt")["epoch"] == 0
    assert load(tmp_path / "last.ckpt")["epoch"] == 2


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_checkpoint_is_plain_values_and_tells_all_of_itself(trained, name):
    ours = load(trained / name)["crosscoop"]  # with weights_only=True
    assert ours["class_names"] == list(STREETS.class_names)
    assert ours["palette"] == [list(color) for color in STREETS.palette]
    assert ours["config"] == yaml.safe_load((trained / "config.yaml").read_text())
    assert ours["config"]["network"]["strategy"] == "cross_c1_c2"


def test_configuration_of_a_run_serves_another_one(trained, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    crosscoop("fit", "--config", trained / "config.yaml", "--run", tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(before)
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before
    assert_equal(load(tmp_path / "new" / "last.ckpt")["state_dict"], load(trained / "last.ckpt")["state_dict"])


# -- evaluation from a run or a checkpoint


@pytest.mark.parametrize("given", ["run", "checkpoint"])
@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_run_or_checkpoint_is_all_that_is_needed(trained, tmp_path, command, split, given):
    shutil.copy(trained / "best.ckpt", tmp_path / "best.ckpt")
    brought = ("--run", tmp_path) if given == "run" else ("--ckpt_path", tmp_path / "best.ckpt")
    crosscoop(command, *brought, "--pictures.num_images 2")
    metrics = read_metrics(tmp_path)
    assert (metrics["stage"], metrics["protocol"]["split"]) == (command, split)
    assert metrics["outputs"].keys() == {"top", "bottom", "ensemble"}
    assert Image.open(tmp_path / "predictions.png").width > 100


def test_figures_are_those_of_the_predictions_counted_by_hand(run):
    expected = counts_by_hand(run / "best.ckpt")
    crosscoop("test", "--run", run)
    metrics, counts = read_metrics(run), read_counts(run)
    for name, figures in metrics["outputs"].items():
        np.testing.assert_array_equal(counts[name], expected[name])
        assert figures["miou"] == pytest.approx(miou(expected[name]), rel=1e-12)
    assert metrics["miou"] == metrics["outputs"]["ensemble"]["miou"]
    assert len({figures["miou"] for figures in metrics["outputs"].values()}) == 3
    assert metrics["num_images"] == metrics["protocol"]["num_images"] == 3


def test_options_beat_what_the_checkpoint_remembers(run):
    crosscoop("test", "--run", run)
    whole, region = read_counts(run), [sample.mask()[8:24, 24:40] for sample in STREETS.samples("test")]
    assert "boundary_miou" not in read_metrics(run)
    crosscoop("test", "--run", run, "--data.center_crop 16 --model.metrics+=BoundaryIoU --network.fusion average")
    metrics, counts = read_metrics(run), read_counts(run)
    assert metrics["protocol"]["evaluation"] == "centre crop 16 at their own size"
    assert counts["top"].sum() == sum((mask < 255).sum() for mask in region) < whole["top"].sum()
    assert "boundary_miou" in metrics
    used = yaml.safe_load((run / "test.yaml").read_text())
    assert (used["data"]["center_crop"], used["network"]["fusion"]) == (16, "average")
    crosscoop("test", "--run", run, "--data.center_crop=16")
    assert any((read_counts(run)[name] != counts[name]).any() for name in counts)  # it was another network


def test_protocol_counts_the_images_that_were_evaluated(run):
    crosscoop("test", "--run", run, "--trainer.limit_test_batches 2")
    assert read_metrics(run)["num_images"] == read_metrics(run)["protocol"]["num_images"] == 2


# -- refusals


def refusal(capsys, command, *options):
    """The one message with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        crosscoop(command, *options)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in output + errors
    assert errors.count("crosscoop: error: ") == 1 and len(errors.splitlines()) < 20
    return errors.partition("crosscoop: error: ")[2]


TINY = " ".join([*NETWORK, *DATA])


@pytest.mark.parametrize(("command", "options", "parts"), [
    ("fot", "", ["'fot'", "fit, validate, test, predict", "Did you mean fit?"]),
    ("fit", "--nonsense 3", ["--nonsense", "crosscoop fit --help"]),
    ("test", "", ["--run", "--ckpt_path"]),
    ("test", "--run {tmp}/none", ["none/best.ckpt"]),
    ("predict", "--ckpt_path {tmp}/none.ckpt", ["none.ckpt"]),
    ("test", "--ckpt_path {tmp}/text.ckpt", ["text.ckpt", "not a checkpoint"]),
    ("test", "--ckpt_path {tmp}/other.ckpt", ["other.ckpt", "not a checkpoint"]),
    ("fit", "--ckpt_path {tmp}/none.ckpt", ["none.ckpt"]),
    ("fit", "--ckpt_path {tmp}/text.ckpt", ["text.ckpt", "not a checkpoint"]),
    ("fit", "--config {tmp}/none.yaml", ["none.yaml"]),
    ("fit", "--model.scheduler=Nonsense", ["model.scheduler", "Nonsense"]),
    ("fit", "--model.scheduler=torch.optim.lr_scheduler.Nonsense", ["model.scheduler", "Nonsense"]),
    ("fit", "--model.scheduler=torch.optim.SGD", ["model.scheduler", "torch.optim.SGD"]),
    ("fit", "--model.scheduler=CosineAnnealingLR", ["model.scheduler", "T_max"]),
    ("fit", "--model.optimizer=Nonsense", ["model.optimizer", "Nonsense"]),
    ("fit", "--model.optimizer.learning_rate=1", ["model.optimizer", "learning_rate"]),
    ("fit", "--model.optimizer.weight_decay=-1", ["model.optimizer", "weight_decay"]),
    ("fit", "--model.loss CrossEntropy --model.loss.class_weights=[-1,2]", ["loss.class_weights", "-1"]),
    ("fit", "--model.loss CrossEntropy --model.loss.class_weights=[1,2]", ["loss.class_weights", "2 weights", "12"]),
    ("fit", "--model.loss CrossEntropy --model.loss.label_smoothing=2", ["loss.label_smoothing", "2"]),
    ("fit", "--trainer.val_check_interval=0", ["trainer.val_check_interval", "0"]),
    ("fit", "--seed_everything=-1", ["seed_everything", "-1"]),
    ("fit", "--data.dataset=Nonsense", ["data.dataset", "Nonsense"]),
    ("fit", "--data.batch_size=0", ["data.batch_size", "0"]),
    ("fit", "--data.scale=[2,1]", ["data.scale", "[2"]),
    ("fit", "--network.branches=[nonsense]", ["nonsense", "network.branches"]),
    ("fit", "--network.strategy=nonsense", ["nonsense", "cross_c1_c2"]),
    ("fit", "--trainer.max_epochs=-1", ["trainer.max_epochs"]),
    ("fit", "--trainer.enable_checkpointing=false", ["enable_checkpointing"]),
])  # fmt: skip
def test_refuses_with_one_message(capsys, tmp_path, monkeypatch, command, options, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    tiny = TINY if command == "fit" and options != "--nonsense 3" else ""
    message = refusal(capsys, command, tiny, options.format(tmp=tmp_path))
    assert [part for part in parts if part not in message] == []


def test_refuses_to_train_into_a_run_that_is_there(capsys, trained):
    before = (trained / "last.ckpt").read_bytes()
    message = refusal(capsys, "fit", TINY, "--run", trained)
    assert str(trained) in message and "--resume" in message and "--run" in message
    assert (trained / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(("command", "options", "part"), [
    ("test", "--network.channels 32", "do not fit the network"),
    ("fit", "--resume --trainer.max_epochs 3 --checkpoint.monitor val/nonsense", "val/nonsense"),
])  # fmt: skip
def test_refuses_what_does_not_fit_the_run(capsys, run, command, options, part):
    assert part in refusal(capsys, command, "--run", run, options)


def test_message_from_a_worker_process_is_as_short(capsys, tmp_path):
    options = "--data.dataset test_pipeline.Mismatched --data.num_workers 1 --data.crop_size 16"
    message = refusal(capsys, "fit", " ".join(NETWORK), options, "--run", tmp_path)
    assert message.startswith("scene 0: the mask has 8 x 9 pixels, the image 8 x 8") and len(message.splitlines()) == 1


# -- resuming


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, "--trainer.max_epochs 4")
    with pytest.raises(PowerCut):
        fit(parts, "--trainer.max_epochs 4 --trainer.callbacks+=tiny.Stopper --trainer.callbacks.epoch 2")
    assert load(parts / "last.ckpt")["epoch"] == 1
    crosscoop("fit", "--run", parts, "--resume --trainer.callbacks null")
    one, other = (load(folder / "last.ckpt") for folder in (whole, parts))
    assert one["epoch"] == other["epoch"] == 3 and one["global_step"] == other["global_step"] == 8
    assert_equal(one["state_dict"], other["state_dict"])
    for one_row, other_row in zip(read_history(whole), read_history(parts), strict=True):
        assert one_row | {"seconds": 0} == other_row | {"seconds": 0}
    assert [row["epoch"] for row in read_history(parts)] == [0, 1, 2, 3]
    assert read_metrics(whole) == read_metrics(parts)
    assert load(whole / "best.ckpt")["epoch"] == load(parts / "best.ckpt")["epoch"]


def test_run_that_is_over_can_be_prolonged(run):
    crosscoop("fit", "--run", run, "--resume --trainer.max_epochs 4")
    assert [row["epoch"] for row in read_history(run)] == [0, 1, 2, 3]
    rates = Recorder.latest.learning_rates
    assert rates[1:] == [[pytest.approx(0.007 * (1 - step / 8) ** 0.9)] * 2 for step in (5, 6, 7)]


def test_resume_without_a_run_begins_one(tmp_path):
    fit(tmp_path, "--resume")
    assert load(tmp_path / "last.ckpt")["global_step"] == 2


# -- independent branches


@pytest.mark.parametrize("clipping", [None, 0.05])
def test_strategy_none_trains_each_branch_as_if_alone(clipping, tmp_path):
    pair = create_network(["test_resnet", "test_byobnet"], 12, "none", channels=16, separable=True)
    singles = [CooperativeNetwork([copy.deepcopy(branch)], Strategy()) for branch in pair.branches]
    before = copy.deepcopy(pair.state_dict())
    for network in (pair, *singles):
        data = SegmentationData(STREETS, batch_size=2, crop_size=32, num_workers=0)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
            gradient_clip_val=clipping,
        )  # fmt: skip
        trainer.fit(CooperativeSegmentation(network, STREETS.class_names), datamodule=data)
        assert trainer.global_step == 4
    for branch, single in zip(pair.branches, singles, strict=True):
        assert_equal(branch.state_dict(), single.branches[0].state_dict())
    changed = [key for key, value in pair.named_parameters() if not torch.equal(value, before[key])]
    assert changed == [key for key, _ in pair.named_parameters()]


# -- optimisers and schedules


def learning_rates(folder, options):
    """The learning rates of backbones and heads at each optimiser step of three epochs of four batches."""
    fit(folder, RECORD, "--data.dataset.num_train 8 --trainer.max_epochs 3 --trainer.limit_val_batches 0", options)
    return np.array(Recorder.latest.learning_rates)


def test_poly_decays_with_every_optimiser_step(tmp_path):
    rates = learning_rates(tmp_path, "--model.heads_lr_multiplier 10")
    expected = 0.007 * (1 - np.arange(12) / 12) ** 0.9
    np.testing.assert_allclose(rates, np.stack([expected, 10 * expected], axis=1), rtol=1e-9)


def test_poly_counts_steps_not_batches_when_gradients_accumulate(tmp_path):
    rates = learning_rates(tmp_path, "--trainer.accumulate_grad_batches 2 --model.poly_power 2")
    np.testing.assert_allclose(rates[:, 0], 0.007 * (1 - np.arange(6) / 6) ** 2, rtol=1e-9)


def test_warm_up_comes_before_the_decay(tmp_path):
    rates = learning_rates(tmp_path, "--model.warmup_steps 4")
    expected = [*(np.arange(1, 5) / 4), *((1 - np.arange(8) / 8) ** 0.9)]
    np.testing.assert_allclose(rates[:, 0], 0.007 * np.array(expected), rtol=1e-9)


def test_any_optimiser_and_schedule_by_class_path(tmp_path):
    options = (
        "--model.optimizer AdamW --model.optimizer.lr 0.002 --model.optimizer.weight_decay 0.5 "
        "--model.scheduler CosineAnnealingLR --model.scheduler.T_max 12"
    )
    rates, optimizer = learning_rates(tmp_path, options), Recorder.latest.optimizer
    np.testing.assert_allclose(rates[:, 1], 0.001 * (1 + np.cos(np.pi * np.arange(12) / 12)), rtol=1e-6)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["weight_decay"] == 0.5
    crosscoop("test", "--ckpt_path", tmp_path / "last.ckpt")  # they stand in the checkpoint's configuration


def test_backbones_and_heads_share_out_the_parameters(trained):
    fresh, groups = (
        network_of(trained / "best.ckpt"),
        load(trained / "last.ckpt")["optimizer_states"][0]["param_groups"],
    )
    backbones = sum(1 for branch in fresh.branches for _ in branch.backbone.parameters())
    assert [group["name"] for group in groups] == ["backbone", "heads"]
    assert [len(group["params"]) for group in groups] == [backbones, len(list(fresh.parameters())) - backbones]


# -- options of training


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32(tmp_path):
    fit(tmp_path, RECORD, "--trainer.precision bf16-mixed")
    assert Recorder.latest.dtypes == {torch.bfloat16}
    state = load(tmp_path / "last.ckpt")["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("options", [
    "",
    "--trainer.precision bf16-mixed --model.optimizer.fused true",
    "--trainer.plugins tiny.Half --model.optimizer.fused true",
    "--trainer.plugins tiny.Half",
])  # fmt: skip
def test_gradients_of_each_branch_and_of_the_exchanges_are_clipped_to_a_norm(tmp_path, options):
    still = (
        "--network.fusion concat --model.optimizer.lr 1 --model.optimizer.momentum 0 --model.optimizer.weight_decay 0"
    )
    fit(tmp_path, RECORD, still, "--trainer.max_steps 1 --trainer.gradient_clip_val 0.01", options)
    norms = [float(torch.cat([each.flatten() for each in part]).norm()) for part in moves(tmp_path)]
    assert norms == pytest.approx([0.01] * 3, rel=1e-2)


def test_gradients_are_clipped_to_a_value(tmp_path):
    still = "--model.optimizer.lr 1 --model.optimizer.momentum 0 --model.optimizer.weight_decay 0"
    clip = "--trainer.gradient_clip_val 0.001 --trainer.gradient_clip_algorithm value"
    fit(tmp_path, RECORD, still, "--trainer.max_steps 1", clip)
    assert max(float(each.abs().max()) for part in moves(tmp_path) for each in part) == pytest.approx(0.001, rel=1e-2)


def moves(folder):
    """How far each parameter of the top branch, the bottom branch and the exchanges has moved."""
    first, last = Recorder.latest.first, load(folder / "last.ckpt")["state_dict"]
    parts = {"branches.0.": [], "branches.1.": [], "": []}
    for key, _ in Recorder.latest.module.network.named_parameters():
        part = next(start for start in parts if key.startswith(start))
        parts[part].append(last[f"network.{key}"] - first[f"network.{key}"])
    return list(parts.values())


def test_averaged_weights_are_those_evaluated(tmp_path):
    fit(tmp_path, "--trainer.max_epochs 2", "--trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 0.5")
    checkpoint = load(tmp_path / "best.ckpt")
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    parameters = [key for key in averaged if key.endswith("weight")]
    assert [key for key in parameters if torch.equal(averaged[key], raw[key])] == []
    crosscoop("test", "--run", tmp_path)
    counts, expected = read_counts(tmp_path), counts_by_hand(tmp_path / "best.ckpt")
    for name, matrix in expected.items():
        np.testing.assert_array_equal(counts[name], matrix)


@pytest.mark.parametrize("affine", [False, True])
def test_frozen_batch_norm_of_the_backbones(tmp_path, affine):
    freeze = f"--trainer.callbacks+=FreezeBatchNorm --trainer.callbacks.affine {str(affine).lower()}"
    fit(tmp_path, "--trainer.max_epochs 2", RECORD, freeze)  # the second epoch follows a validation
    first, last = Recorder.latest.first, load(tmp_path / "last.ckpt")["state_dict"]

    def unchanged(*endings):
        keys = [key for key in first if key.endswith(endings)]
        return ({".backbone." in key for key in keys if torch.equal(first[key], last[key])},
                {".backbone." in key for key in keys if not torch.equal(first[key], last[key])})  # fmt: skip

    assert unchanged("running_mean", "running_var") == ({True}, {False})
    norms = tuple(f"{name}.weight" for name, module in Recorder.latest.module.named_modules()
                  if isinstance(module, nn.BatchNorm2d))  # fmt: skip
    assert unchanged(*norms) == (({True}, {False}) if affine else (set(), {True, False}))


def test_channels_last_is_a_layout_and_nothing_else(trained, tmp_path):
    fit(tmp_path, "--trainer.max_epochs 2", RECORD, "--model.channels_last true")
    weight = Recorder.latest.module.network.branches[0].backbone.network.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain, other = load(trained / "last.ckpt")["state_dict"], load(tmp_path / "last.ckpt")["state_dict"]
    torch.testing.assert_close(other, plain, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("option", "given"), [
    ("--model.compile true", {}),
    ("--model.compile.mode max-autotune --model.compile.dynamic true", {"mode": "max-autotune", "dynamic": True}),
    ("--model.compile '{dynamic: false}'", {"dynamic": False}),
])  # fmt: skip
def test_compiled_network_leaves_a_plain_checkpoint(trained, tmp_path, monkeypatch, option, given):
    calls = []

    def counting(function, **asked):
        def call(*inputs, **options):
            calls.append((torch.is_grad_enabled(), asked))
            return function(*inputs, **options)

        return call

    monkeypatch.setattr(torch, "compile", counting)  # compiling itself takes minutes; see test_network
    fit(tmp_path, "--trainer.max_epochs 2", option)
    assert calls == 4 * [(True, given)]  # evaluation, whose images vary in size, is not compiled
    assert_equal(load(tmp_path / "last.ckpt")["state_dict"], load(trained / "last.ckpt")["state_dict"])
    crosscoop("test", "--run", tmp_path)


def test_a_few_batches_are_learned_by_heart(tmp_path):
    fit(tmp_path, RECORD, "--trainer.overfit_batches 1 --trainer.max_epochs 3")
    assert Recorder.latest.names == [["train/000000", "train/000001"]] * 3


def test_single_network_trains_and_is_tested(tmp_path):
    fit(tmp_path, "--network.branches=[test_resnet] --network.strategy none")
    crosscoop("test", "--run", tmp_path)
    crosscoop("predict", "--run", tmp_path)
    assert read_metrics(tmp_path)["outputs"].keys() == {"network"}
    assert len(list((tmp_path / "predictions").rglob("*.png"))) == 3


def test_training_uses_the_augmented_crops(tmp_path, monkeypatch):
    shapes = set()
    augment = Augmentation.__call__

    def spy(self, image, mask, seed, focus):
        shapes.add((image.shape, seed[0]))
        return augment(self, image, mask, seed, focus)

    monkeypatch.setattr(Augmentation, "__call__", spy)
    fit(tmp_path, "--seed_everything 7 --data.resize=[40,50]")
    assert shapes == {((40, 50, 3), 7)}


def test_python_interface_and_command_line_name_the_same_version(capsys):
    crosscoop("--version")
    assert capsys.readouterr().out == f"crosscoop {package.__version__}\n"


def test_section_with_all_its_options_commented_out_is_the_default(tmp_path):
    (tmp_path / "empty.yaml").write_text("model:\ncheckpoint:\n# monitor: val/miou\n")
    fit(tmp_path / "run", "--config", tmp_path / "empty.yaml")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == "val/miou" and config["model"]["poly_power"] == 0.9


def test_training_says_nothing_that_nobody_can_use(tmp_path, caplog, monkeypatch, recwarn):
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)  # to caplog
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        fit(tmp_path / "run")
    assert "max_epochs=1" in caplog.text and "weights_only" not in caplog.text
    assert not [str(warning.message) for warning in recwarn if "is not empty" in str(warning.message)]


# -- what `fit` prints before it trains: the network's costs, and nothing that nobody can use


class Peeking(Add):
    """An operator that looks at the values of a map, which the device `meta` does not have."""

    def forward(self, own, received):
        return own if bool((received > 1e9).all()) else super().forward(own, received)


def macs_by_hand(module, image):
    """Multiply-adds of the convolutions, by the sizes of their outputs."""
    found = []

    def hook(layer, inputs, output):
        found.append(layer.weight[0].numel() * output.numel())

    handles = [each.register_forward_hook(hook) for each in module.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        module(image)
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize(("strategy", "fusion"), [("none", "add"), ("cross_c1_c2", "concat")])
def test_costs_of_the_parts_are_those_of_the_convolutions(make_pair, strategy, fusion):
    pair, image = make_pair(strategy, fusion), torch.rand(1, 3, 33, 49)
    before = {key: value.clone() for key, value in pair.train().state_dict().items()}
    costs = cost_by_part(pair, 33, 49)
    assert list(costs) == ["top: backbone", "top: head", "bottom: backbone", "bottom: head", "exchange", "total"]
    assert_equal(pair.state_dict(), before)
    assert pair.training and all(parameter.device.type == "cpu" for parameter in pair.parameters())
    pair.eval()
    for name, branch in zip(("top", "bottom"), pair.branches, strict=True):
        backbone, head = costs[f"{name}: backbone"], costs[f"{name}: head"]
        assert backbone.macs == macs_by_hand(branch.backbone, image) > 0
        assert backbone.macs + head.macs == macs_by_hand(branch, image) == count_macs(branch, image)
        assert backbone.parameters == sum(p.numel() for p in branch.backbone.parameters())
    assert costs["total"].macs == macs_by_hand(pair, image)
    *parts, total = costs.values()
    assert total.parameters == sum(part.parameters for part in parts) == sum(p.numel() for p in pair.parameters())
    assert total.macs == sum(part.macs for part in parts)
    assert (costs["exchange"].macs > 0) == (strategy != "none")


def test_a_network_that_looks_at_values_has_its_parameters_counted():
    costs = cost_by_part(create_network(["test_resnet", "test_byobnet"], 3, fusion=Peeking, channels=16), 32, 32)
    assert {cost.macs for cost in costs.values()} == {None} and costs["total"].parameters > 0


def test_fit_prints_the_costs_and_no_advertisement(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)  # to caplog
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        fit(tmp_path / "single", "--network.branches=[test_resnet] --network.strategy none",
                 "--trainer.enable_model_summary true")  # fmt: skip
    said = "".join(capfd.readouterr()) + caplog.text
    assert "multiply-adds at 32 x 32" in said and "network: backbone" in said and "exchange" not in said
    assert [word for word in ("Tip", "litlogger", "FLOPs", "TPU", "GPU available: False") if word in said] == []
    assert "max_epochs=1" in said
    fit(tmp_path / "quiet")
    assert "multiply-adds" not in "".join(capfd.readouterr())
    config = (tmp_path / "single/config.yaml").read_text()
    assert "enable_model_summary: true" in config


def test_fit_trains_what_it_cannot_count(tmp_path, capfd):
    fit(tmp_path, "--network.fusion test_training.Peeking --trainer.enable_model_summary true")
    said = capfd.readouterr().out
    assert "not counted" in said and "multiply-adds at" not in said and (tmp_path / "best.ckpt").is_file()

"""Each access to the inside of Lightning, jsonargparse and wandb still works, and is still needed.

A test named `..._is_still_needed` fails once the library has fixed the fault: then remove the workaround.
"""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from processes import Python
from pytorch_lightning.callbacks import BackboneFinetuning, ModelCheckpoint, Timer
from pytorch_lightning.cli import LightningCLI, _InstantiatorFn
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from tiny import fit

import crosscoop
import crosscoop.cli
from crosscoop.training import lightning_fixes as fixes

PACKAGE = Path(crosscoop.__file__).parent


class Model(BoringModel):
    """Lightning's smallest model, with a backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(32, 32)
        self.validated = 0

    def forward(self, x):
        return self.layer(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [p for p in self.parameters() if p.requires_grad], "name": "heads"}], lr=0.1)

    def validation_step(self, batch, batch_idx):
        self.validated += 1


def make_trainer(folder, *callbacks, **options):
    options = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2} | options
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, callbacks=list(callbacks), enable_checkpointing=any(
            isinstance(each, ModelCheckpoint) for each in callbacks), **options,
    )  # fmt: skip


class Saver(pl.Callback):
    """Saves a checkpoint at a hook."""

    def __init__(self, path, hook):
        def save(trainer, *_):
            if trainer.state.fn == "fit" and not path.exists():
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


# -- the epochs of max_steps: count_epochs_as_epochs


@pytest.mark.parametrize("fixed", [False, True])
def test_end_of_epoch_under_max_steps_is_still_needed(tmp_path, fixed):
    class Fix(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            if fixed:
                fixes.count_epochs_as_epochs(trainer)

        def on_train_epoch_start(self, trainer, pl_module):
            epochs.append(trainer.current_epoch)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append(trainer.current_epoch)

    epochs, batches = [], []
    limits = {"max_epochs": -1, "limit_val_batches": 0}
    trainer = make_trainer(tmp_path, Fix(), Saver(tmp_path / "a.ckpt", "on_train_epoch_end"), max_steps=2, **limits)
    trainer.fit(Model())
    trainer = make_trainer(tmp_path, Fix(), max_steps=6, **limits)
    trainer.fit(Model(), ckpt_path=tmp_path / "a.ckpt")
    assert (batches == [0, 0, 1, 1, 2, 2]) == fixed, (epochs, batches)


# -- what the loop knows


def test_validation_follows_the_batch_it_is_told_of(tmp_path):
    class Asker(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            told.append(fixes.validation_follows(trainer))

    told = []
    make_trainer(tmp_path, Asker(), limit_train_batches=4, val_check_interval=2).fit(Model())
    assert told == [False, True, False, True]


@pytest.mark.parametrize("fixed", [False, True])
def test_interrupted_validation_is_still_needed(tmp_path, fixed):
    make_trainer(tmp_path, Saver(tmp_path / "a.ckpt", "on_validation_start")).fit(Model())
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    if fixed:
        fixes.count_validation_as_begun(checkpoint)
        torch.save(checkpoint, tmp_path / "a.ckpt")
    model = Model()
    make_trainer(tmp_path).fit(model, ckpt_path=tmp_path / "a.ckpt")
    assert (model.validated == 2) == fixed, model.validated


# -- a moved run


@pytest.mark.parametrize("fixed", [False, True])
def test_moved_best_score_is_still_needed(tmp_path, fixed):
    class Move(pl.Callback):
        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            if fixed:
                fixes.follow_moved_folder(trainer, checkpoint)

    old, new = tmp_path / "old", tmp_path / "new"
    best = ModelCheckpoint(old, "best", monitor="epoch", mode="min", enable_version_counter=False)
    make_trainer(old, best, Saver(old / "last.ckpt", "on_fit_end")).fit(Model())
    old.rename(new)
    best = ModelCheckpoint(new, "best", monitor="epoch", mode="min", enable_version_counter=False)
    make_trainer(new, best, Move(), max_epochs=2).fit(Model(), ckpt_path=new / "last.ckpt")
    assert (torch.load(new / "best.ckpt", weights_only=True)["epoch"] == 0) == fixed


# -- a thawed backbone


@pytest.mark.parametrize("fixed", [False, True])
def test_thawed_backbone_is_still_needed(tmp_path, fixed):
    class Thaw(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            if fixed:
                fixes.thaw_resumed(trainer)

    tuning = {"unfreeze_backbone_at_epoch": 1}
    saver = Saver(tmp_path / "a.ckpt", "on_fit_end")
    make_trainer(tmp_path, BackboneFinetuning(**tuning), saver, max_epochs=2).fit(Model())
    model = Model()
    trainer = make_trainer(tmp_path, BackboneFinetuning(**tuning), Thaw(), max_epochs=3)
    trainer.fit(model, ckpt_path=tmp_path / "a.ckpt")
    assert model.backbone.weight.requires_grad == fixed


# -- ranks


def test_launched_ranks_are_found_and_told(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    assert isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) or trainer.strategy.launcher is None
    launcher = _SubprocessScriptLauncher(trainer.strategy.cluster_environment, 2, 1)
    trainer.strategy._launcher = launcher
    assert fixes.launched_ranks(trainer) == []
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher.procs.append(process)
    assert fixes.launched_ranks(trainer) == [process]
    fixes.tell_ranks(trainer, 15)
    assert process.wait(30) == -15
    alone = make_trainer(tmp_path)
    assert fixes.launched_ranks(alone) == []
    fixes.tell_ranks(alone, 15)


# -- defaults


def test_defaults_of_classes_are_still_needed():
    code = """
import inspect
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.callbacks import Timer
for logger in (CSVLogger, TensorBoardLogger):
    assert inspect.signature(logger).parameters["save_dir"].default is inspect.Parameter.empty
parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--callback", type=Callback)
config = parser.parse_args(["--callback", "Timer"])
try:
    parser.dump(config)
except Exception:
    print("needed")
"""
    assert Python([sys.executable, "-c", code], stdout=subprocess.PIPE).read() == "needed\n"


def test_defaults_of_classes_are_given():
    fixes.give_defaults()
    fixes.give_defaults()  # a second command in one process
    for logger in (CSVLogger, TensorBoardLogger):
        parameters = inspect.signature(logger).parameters
        assert (parameters["save_dir"].default, parameters["name"].default) == ("", "lightning_logs")
    assert [each.default for each in inspect.signature(Timer).parameters.values()] == [None, "step", True]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=pl.Callback)
    assert "interval: step" in parser.dump(parser.parse_args(["--callback", "Timer"]))
    assert CSVLogger("a").save_dir == "a"


# -- refusals


def test_refusals_are_told_from_errors(tmp_path):
    def error_of(call):
        try:
            call()
        except Exception as error:
            return error
        raise AssertionError

    assert fixes.refused_by(error_of(lambda: pl.Trainer(strategy="nonsense"))) == "Lightning"
    assert fixes.refused_by(error_of(lambda: pl.Trainer(accelerator="cpu", devices=-1))) == "Lightning"
    assert fixes.refused_by(error_of(lambda: torch.optim.SGD([], 0.1))) == "torch.optim"
    assert not fixes.refused_by(error_of(lambda: pl.Trainer(callbacks=3)))  # no `raise`
    assert not fixes.refused_by(error_of(lambda: int("a")))
    assert not fixes.refused_by(ValueError("never raised"))


# -- wandb


def test_wandb_begins_when_asked_and_offline_after_a_refusal(tmp_path):
    pytest.importorskip("wandb")
    code = """
import sys
from pytorch_lightning.loggers import WandbLogger
from crosscoop.training import lightning_fixes as fixes

logger = WandbLogger(save_dir=sys.argv[1], project="t")
assert not fixes.wandb_has_begun(logger)
fixes.keep_wandb_on_disk(logger)
assert logger.experiment.offline and fixes.wandb_has_begun(logger)
fixes.leave_wandb()  # for this process, for good
"""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"} | {"WANDB_SILENT": "true"}
    assert Python([sys.executable, "-c", code, tmp_path], env=environment).wait() == 0


# -- nowhere else


def private_names(path):
    """The names with a leading underscore of other objects than `self` that a file uses or imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            names = [node.attr]
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(
            ("pytorch_lightning", "lightning", "wandb")
        ):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_names_of_metrics_do_not_share_a_path_in_mlflow():
    class Logger:
        def log_metrics(self, metrics, step=None):
            self.logged = metrics, step

    logger = Logger()
    fixes.separate_names(logger)
    logger.log_metrics({"val/miou": 0.5, "val/miou/top": 0.4, "lr/heads": 1.0}, 3)
    assert logger.logged == ({"val/miou/all": 0.5, "val/miou/top": 0.4, "lr/heads": 1.0}, 3)


def test_leaving_out_hyperparameters_is_still_needed():
    assert "torch.load(" in inspect.getsource(LightningCLI._parse_ckpt_path)
    assert "_dump_config()" in inspect.getsource(_InstantiatorFn.__call__)


def test_an_evaluation_reads_its_checkpoint_once_and_lightning_once(tmp_path, monkeypatch):
    fit(tmp_path / "run")
    read, original = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: read.append(file) or original(file, **options))
    crosscoop.cli.main(["test", "--run", str(tmp_path / "run"), "--pictures.num_images=0"])
    assert len(read) == 2


def test_private_names_are_used_in_one_file_only():
    fixes_file = PACKAGE / "training" / "lightning_fixes.py"
    assert set(private_names(fixes_file)) >= {"_iteration_based_training", "_parser", "_experiment"}
    found = {f"{path.relative_to(PACKAGE)}: {name}" for path in PACKAGE.rglob("*.py") for name in private_names(path)
             if path != fixes_file}  # fmt: skip
    assert found <= {
        "training/callbacks/ranks.py: _exit",  # of os
        "ablation/search.py: _trial_id",  # of optuna
        "commands/options.py: _actions",  # of argparse, as is the next
        "commands/options.py: _get_help_string",
    }


def test_unscaling_for_a_fused_optimizer_is_still_needed(tmp_path):
    class Fused(Model):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)

    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        make_trainer(tmp_path, gradient_clip_val=1.0, precision="bf16-mixed").fit(Fused())

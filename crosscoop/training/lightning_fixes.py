"""Every access to an undocumented name or file format of Lightning, jsonargparse and wandb, each with its reason.

Versions seen: pytorch-lightning 2.6.6, jsonargparse 4.53, wandb 0.31. `tests/training/test_lightning_fixes.py` fails
when an access breaks, and when one is no longer needed.
"""

import contextlib
import logging
import re
import subprocess
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import BaseFinetuning, Timer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch.optim import Optimizer


def count_epochs_as_epochs(trainer: pl.Trainer) -> None:
    """Count an epoch as finished at its end under `max_steps` as well.

    Lightning treats it as unfinished, and a resumed run then counts an epoch without batches.
    https://github.com/Lightning-AI/pytorch-lightning/issues/19617
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def validation_follows(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the current training batch.

    Only Lightning's loop decides this; no hook or property exposes it. No upstream issue found.
    """
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def count_validation_as_begun(checkpoint: Mapping[str, Any]) -> None:
    """Mark the validation as started in a checkpoint's counters.

    Lightning would treat one interrupted before its first batch as finished, and skip it in the resumed run.
    https://github.com/Lightning-AI/pytorch-lightning/issues/19549
    """
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    total["ready"] += 1
    total["started"] += 1


def follow_moved_folder(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Update the paths in the states of a checkpoint's `ModelCheckpoint`s if their folder was moved with it.

    Lightning drops the best score when the folder has another name, so that any later epoch becomes the best.
    https://github.com/Lightning-AI/pytorch-lightning/issues/14443
    """
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint["callbacks"].get(callback.state_key) or {}
        old, new = state.get("dirpath"), getattr(callback, "dirpath", None)
        if old and new and old != new and Path(str(trainer.ckpt_path)).resolve().parent == Path(new):
            for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = state[key].replace(old, new, 1)
            state["best_k_models"] = {
                path.replace(old, new, 1): score for path, score in state["best_k_models"].items()
            }


def thaw_resumed(trainer: pl.Trainer) -> None:
    """Unfreeze the parameters that `BaseFinetuning` had added to an optimizer before the run was interrupted.

    Lightning freezes them again in a resumed run, permanently: they have a learning rate but no gradient.
    https://github.com/Lightning-AI/pytorch-lightning/issues/21901
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning):
            for group in trainer.optimizers[0].param_groups:
                if "name" not in group:  # the task's own groups have names
                    for parameter in group["params"]:
                        parameter.requires_grad_(True)


def unscale_fused(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    """Unscale the gradients of a fused optimizer before they are clipped, under 16-mixed precision.

    Lightning leaves that to the optimizer's step, and refuses to clip, under bf16-mixed as well
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21435). torch's scaler does not unscale twice.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


def launched_ranks(trainer: pl.Trainer) -> list["subprocess.Popen[bytes]"]:
    """Return the processes of the ranks that Lightning started from this one.

    Lightning kills the others when one of them dies, but does not report which one.
    https://github.com/Lightning-AI/pytorch-lightning/issues/8130
    """
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def tell_ranks(trainer: pl.Trainer, signal: int) -> None:
    """Send a signal to the ranks that Lightning started from this process. No upstream issue found."""
    launcher = trainer.strategy.launcher
    if launcher is not None and hasattr(launcher, "kill"):
        launcher.kill(signal)


class WithoutHyperparameters(LightningCLI):
    """A command line that leaves out the hyperparameters that Lightning records in checkpoints.

    Ours have the whole configuration instead. Lightning would write it out once more per module, and read the whole
    checkpoint to look for hyperparameters. No upstream issue found.
    """

    def _dump_config(self) -> None:
        self.config_dump: dict[str, Any] = {}

    def _parse_ckpt_path(self) -> None:
        pass


def defaults_of(cli: LightningCLI, command: str) -> dict[str, Any]:
    """Return the default of each option of a command.

    The parser of a subcommand has no public name. No upstream issue found.
    """
    return vars(cli._parser(command).get_defaults())


def plain_values(cli: LightningCLI, command: str, config: Namespace) -> dict[str, Any]:
    """Return a command's configuration as plain values, null ones included.

    `skip_unset` was formerly `skip_none`. https://github.com/mauvilsa/jsonargparse/pull/909
    """
    values: dict[str, Any] = yaml.safe_load(cli._parser(command).dump(config, skip_unset=False))
    return values


def give_defaults() -> None:
    """Give parameters of Lightning's classes the defaults that make them configurable.

    - `CSVLogger` and `TensorBoardLogger` require `save_dir`, although it follows from the run's folder: "" stands for
      it.
    - `Timer` has an enum as the default of `interval: str`, which jsonargparse refuses to write to a configuration.

    No upstream issue found for either.
    """
    _give_default(CSVLogger.__init__, save_dir="")
    _give_default(TensorBoardLogger.__init__, save_dir="")
    _give_default(Timer.__init__, interval="step")


def _give_default(function: Callable[..., None], **values: Any) -> None:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    given = dict(zip(reversed(names), reversed(function.__defaults__ or ()), strict=False)) | values
    function.__defaults__ = tuple(given[name] for name in names if name in given)


def refused_by(error: BaseException) -> str | None:
    """Return which library raised an exception on purpose, as for incompatible options; None for other errors.

    Such exceptions may have any type. One without a `raise` is a bug, in the library or here. No upstream issue found.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not (frames and (frames[-1].line or "").startswith("raise")):
        return None
    folders = Path(frames[-1].filename).parts[:-1]
    if {"pytorch_lightning", "lightning_fabric"}.intersection(folders):
        return "Lightning"
    return "torch.optim" if folders[-2:] == ("torch", "optim") else None


def separate_names(logger: MLFlowLogger) -> None:
    """Log `val/miou` beside `val/miou/top` as `val/miou/all`: MLflow keeps each metric in a file of its name.

    No upstream issue found.
    """
    log = logger.log_metrics

    def renamed(metrics: Mapping[str, float], step: int | None = None) -> None:
        names = {key: f"{key}/all" if re.fullmatch(r"(train|val|test)/[^/]+", key) else key for key in metrics}
        log({names[key]: value for key, value in metrics.items()}, step)

    logger.log_metrics = renamed  # type: ignore[method-assign]


def wandb_has_begun(logger: WandbLogger) -> bool:
    """Return whether W&B's run has started; the public `experiment` would start it. No upstream issue found."""
    return logger._experiment is not None


def keep_wandb_on_disk(logger: WandbLogger) -> None:
    """Make a logger start an offline run after W&B refused an online one.

    Lightning evaluates `offline` in the constructor only. No upstream issue found.
    """
    logger._offline, logger._wandb_init["mode"] = True, "offline"


def leave_wandb() -> None:
    """Disconnect from W&B's process: a dead one raises at exit, a live one keeps the failed run.

    No upstream issue found.
    """
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown(exit_code=1)


USELESS = (
    "Tip: ",  # advertises litlogger and litmodels
    "TPU available: False",
    "GPU available: False",
    "Loading `train_dataloader` to estimate",
)
"""Fragments of these messages."""


def silence_advertisements() -> None:
    """Drop Lightning's advertisements and lines about absent devices, and keep all other messages."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in USELESS)

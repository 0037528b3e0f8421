"""The checkpoint to resume from, and the ways to end a run that leave one."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from pytorch_lightning.utilities import rank_zero_only

from crosscoop.data.samplers import TrainingLoader
from crosscoop.training.checkpoint_io import check_room, clean
from crosscoop.training.lightning_fixes import (
    count_epochs_as_epochs,
    count_validation_as_begun,
    follow_moved_folder,
    tell_ranks,
    validation_follows,
)


class LastCheckpoint(Checkpoint):
    """Checkpoint `last.ckpt` in the run's folder, from which a run resumes as if it had never stopped.

    It is written after the last training batch before each validation, at the end of each epoch, at chosen steps, and
    when SIGTERM, SIGUSR1 or Ctrl-C asks the run to end: then after the current optimiser step, with exit code
    128 + signal. A second signal, at least a second later, ends the run immediately. Randomness within a step (dropout)
    follows from seed, rank, epoch and batch, as in augmentation, so that no generator state needs to be saved.

    Args:
        every_n_steps: Number of optimiser steps between additional writes within an epoch; 0 for none.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        self.every_n_steps = every_n_steps
        self.step = 0
        self.stop = StopSignals()
        self.validation_follows = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove what a killed process left behind."""
        if stage != "fit":
            return
        count_epochs_as_epochs(trainer)
        if trainer.is_global_zero:
            clean(Path(trainer.default_root_dir))

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers."""
        self.stop.listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the disk space, install the signal handlers and, within an epoch, skip the batches already used."""
        if trainer.is_global_zero:
            check_room(Path(trainer.default_root_dir), _size(trainer, pl_module))
        self.stop.listen(trainer)
        self.step = trainer.global_step
        if trainer.fit_loop.restarting and isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.skip = trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip no batches of a full epoch; a run resumed after an epoch's last batch has not used up its skip."""
        if isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.skip = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the randomness of this step from seed, rank, epoch and batch."""
        numbers = (trainer.datamodule.seed, trainer.global_rank, trainer.current_epoch, batch_idx)  # type: ignore[attr-defined]
        first, second = map(int, np.random.SeedSequence(numbers).generate_state(2))
        torch.manual_seed(first << 32 | second)
        np.random.seed(first)
        random.seed(first)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimiser step, if due."""
        if trainer.global_step == self.step:
            return  # gradients are accumulating, which checkpoints do not contain
        self.step = trainer.global_step
        asked = self._asked(trainer)
        if trainer.is_last_batch or validation_follows(trainer):
            return  # the next hook saves
        if asked or (self.every_n_steps and self.step % self.every_n_steps == 0):
            self._save(trainer)
        if asked:
            self.stop.end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the training so far; the resumed run starts with this validation."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validation_follows = True
        self._save(trainer)
        self.validation_follows = False
        if self._asked(trainer):
            self.stop.end(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """End here if asked to: the checkpoint exists. Ranks do not synchronise, as their batch counts may differ."""
        if self.stop.received:
            self.stop.end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of the epoch."""
        self._save(trainer)
        if self._asked(trainer):
            self.stop.end(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a missing best checkpoint, and which one replaces it."""
        last, best = Path(trainer.default_root_dir) / "last.ckpt", trainer.checkpoint_callback
        if last.exists() and not getattr(best, "best_model_path", ""):
            kept = getattr(best, "save_top_k", 1) != 0
            reason = "nothing was validated" if kept else "checkpoint.save_top_k is 0"
            print(f"No best.ckpt: {reason}. {last} has the weights of the last step; test, predict and export use it.")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark the validation as started in Lightning's counters; otherwise a resumed run would skip it."""
        if self.validation_follows:
            count_validation_as_begun(checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Update the paths of a moved run folder; otherwise Lightning would drop the best score."""
        follow_moved_folder(trainer, checkpoint)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt", weights_only=False)

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Return whether any rank was asked to end; all ranks call this at the same step."""
        return trainer.strategy.reduce_boolean_decision(bool(self.stop.received), all=False)


def _size(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Return the bytes of a checkpoint: weights, averaged weights, and the optimiser's state (Adam: two of each)."""
    copies = 1 + sum(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    copies += max(len(optimizer.defaults.get("betas", "1")) for optimizer in trainer.optimizers)
    return copies * sum(int(value.nbytes) for value in module.state_dict().values())


class StopSignals:
    """Signals that ask a process to end.

    A signal within a second of the first one is ignored as a repetition: SLURM signals every process of a job, and
    those that started others forward the signal.
    """

    def __init__(self) -> None:
        self.received = 0
        self.first = 0.0
        self.previous: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        """Replace the handlers of Python and Lightning until the end of the fit."""
        if self.previous or threading.current_thread() is not threading.main_thread():
            return
        self.trainer = trainer
        self.is_child = trainer.local_rank > 0 and self._launched_by_lightning(trainer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self.previous[number] = signal.signal(number, self._note)

    def end(self, trainer: pl.Trainer) -> None:
        """Exit, after Lightning's handler for requeueing on SLURM if there is one.

        Raises:
            SystemExit: Always; with 128 + signal, but 0 in Lightning's child processes, whose parent reports the code.
        """
        number = self.received or signal.SIGTERM
        requeue = self.previous.get(signal.SIGUSR1)
        if number == signal.SIGUSR1 and callable(requeue):
            requeue(number, None)
        raise SystemExit(0 if self.is_child else 128 + number)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and time.monotonic() - self.first < 1:
            return
        again, self.received, self.first = self.received, number, self.first or time.monotonic()
        if self.is_child:
            return
        tell_ranks(self.trainer, signal.SIGKILL if again else number)
        if again:
            raise SystemExit(128 + number)
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: ending after this step. Another signal ends it immediately.\n".encode())

    @staticmethod
    def _launched_by_lightning(trainer: pl.Trainer) -> bool:
        return isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)


class FurtherCheckpoints(ModelCheckpoint):
    """Checkpoints under other names; as a class of its own, it has its own state in each checkpoint."""


def further_checkpoints(options: Namespace) -> list[ModelCheckpoint]:
    """Return callbacks for the checkpoints that the options request in addition to `best.ckpt`.

    Args:
        options: Options of `ModelCheckpoint`; changed to keep only the best checkpoint, as `best.ckpt`.
    """
    wanted = dict(vars(options))
    if wanted["save_top_k"] in (0, 1) and wanted["filename"] == "best":
        return []
    options.save_top_k, options.filename = 1, "best"
    if wanted["filename"] == "best":
        wanted["filename"] = "{epoch}-{step}"
    return [FurtherCheckpoints(**wanted | {"save_last": None})]

"""The checkpoint to go on from, and the ways to end a run that leave one."""

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
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Checkpoint, WeightAveraging
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
    """Keeps `last.ckpt` in the run's folder, from which a run goes on as if it had never stopped.

    It is written after the last training batch before each validation, at the end of each epoch, at chosen steps, and
    when SIGTERM, SIGUSR1 or Ctrl-C asks the run to end: then after the current optimiser step, with exit code
    128 + signal. A second signal, at least a second later, ends the run at once. What is random in a step (dropout)
    follows from seed, rank, epoch and batch, as the augmentation does, so that no generator's state needs to be kept.

    Args:
        every_n_steps: Write it also every so many optimiser steps within an epoch; 0 for the ends of epochs only.
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
        """Begin to listen for signals."""
        self.stop.listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for room, begin to listen for signals; within an epoch, leave out the batches that were seen."""
        if trainer.is_global_zero:
            check_room(Path(trainer.default_root_dir), _size(trainer, pl_module))
        self.stop.listen(trainer)
        self.step = trainer.global_step
        if trainer.fit_loop.restarting and isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.skip = trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out none: of an epoch that was resumed after its last batch, none was asked for."""
        if isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.skip = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw what is random in this step from seed, rank, epoch and batch."""
        numbers = (trainer.datamodule.seed, trainer.global_rank, trainer.current_epoch, batch_idx)  # type: ignore[attr-defined]
        first, second = map(int, np.random.SeedSequence(numbers).generate_state(2))
        torch.manual_seed(first << 32 | second)
        np.random.seed(first)
        random.seed(first)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimiser step, where it is time to."""
        if trainer.global_step == self.step:
            return  # gradients accumulate, and are in no checkpoint
        self.step = trainer.global_step
        asked = self._asked(trainer)
        if trainer.is_last_batch or validation_follows(trainer):
            return  # the next hook saves
        if asked or (self.every_n_steps and self.step % self.every_n_steps == 0):
            self._save(trainer)
        if asked:
            self.stop.end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was learnt; the resumed run begins with this validation."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validation_follows = True
        self._save(trainer)
        self.validation_follows = False
        if self._asked(trainer):
            self.stop.end(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """End here, if asked to: the checkpoint is there. Ranks do not wait for each other, they count differently."""
        if self.stop.received:
            self.stop.end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch."""
        self._save(trainer)
        if self._asked(trainer):
            self.stop.end(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a missing best checkpoint, and which one there is instead."""
        last, best = Path(trainer.default_root_dir) / "last.ckpt", trainer.checkpoint_callback
        if last.exists() and not getattr(best, "best_model_path", ""):
            kept = getattr(best, "save_top_k", 1) != 0
            reason = "nothing was validated" if kept else "checkpoint.save_top_k is 0"
            print(f"No best.ckpt: {reason}. {last} has the weights of the last step; test, predict and export take it.")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write into Lightning's counters that the validation is under way, else it would take it for done."""
        if self.validation_follows:
            count_validation_as_begun(checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Follow a run's folder that was moved: Lightning drops the best score when the folder has another name."""
        follow_moved_folder(trainer, checkpoint)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt", weights_only=False)

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to end; all ranks call this at the same step."""
        return trainer.strategy.reduce_boolean_decision(bool(self.stop.received), all=False)


def _size(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """The bytes of a checkpoint: weights, averaged weights, and what the optimiser keeps of each (Adam: two)."""
    copies = 1 + sum(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    copies += max(len(optimizer.defaults.get("betas", "1")) for optimizer in trainer.optimizers)
    return copies * sum(int(value.nbytes) for value in module.state_dict().values())


class StopSignals:
    """Takes note of signals that ask a process to end.

    What comes within a second of the first signal is that one again: SLURM tells every process of a job, and those that
    started others pass it on.
    """

    def __init__(self) -> None:
        self.received = 0
        self.first = 0.0
        self.previous: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        """Take the place of the handlers of Python and Lightning until the end of the fit."""
        if self.previous or threading.current_thread() is not threading.main_thread():
            return
        self.trainer = trainer
        self.is_child = trainer.local_rank > 0 and self._launched_by_lightning(trainer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self.previous[number] = signal.signal(number, self._note)

    def end(self, trainer: pl.Trainer) -> None:
        """Leave, after the handler of SLURM's requeueing if there is one.

        Raises:
            SystemExit: Always; of 128 + signal, but 0 in Lightning's child processes, whose parent speaks for them.
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
        os.write(2, f"\n{name}: ending after this step. Another signal ends at once.\n".encode())

    @staticmethod
    def _launched_by_lightning(trainer: pl.Trainer) -> bool:
        return isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)

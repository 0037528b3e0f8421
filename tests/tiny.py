"""The command line on a network and on data so small that a training takes a second."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from crosscoop.cli import main
from crosscoop.data import Streets
from crosscoop.data.dataset import Array

ROOT = Path(__file__).parents[1]
"""The repository's."""

NETWORK = shlex.split("--network.branches=[test_resnet,test_byobnet] --network.channels 16 --network.separable true")
DATA = shlex.split(
    "--data.dataset Streets --data.dataset.num_train 4 --data.dataset.num_val 3 --data.dataset.num_test 3 "
    "--data.dataset.height 32 --data.dataset.width 64 --data.batch_size 2 --data.crop_size 32 --data.num_workers 0"
)
QUIET = shlex.split(
    "--trainer.accelerator cpu --trainer.num_sanity_val_steps 0 "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
)
STREETS = Streets(num_train=4, num_val=3, num_test=3, height=32, width=64)


def crosscoop(command: str, *options: object) -> None:
    """Run a command in this process; a string of options may hold several. `test` draws no pictures unless asked to."""
    words = ["--pictures.num_images=0"] * (command == "test")
    for option in options:
        words += [str(option)] if isinstance(option, Path) else shlex.split(option)
    main([command, *words])


def fit(run: Path, *options: object) -> None:
    """Train the tiny network on the tiny data."""
    crosscoop("fit", shlex.join([*NETWORK, *DATA, *QUIET]), "--trainer.max_epochs 1", "--run", run, *options)


def load(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Two state dicts, bit for bit."""
    assert list(first) == list(second)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def count(labels: Array, mask: Array, num_classes: int) -> NDArray[np.int64]:
    """A confusion matrix by hand, rows true, columns predicted."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (mask[mask < 255], labels[mask < 255]), 1)
    return counts


def miou(counts: NDArray[np.int64]) -> float:
    """The mean IoU of a confusion matrix over the classes that it holds."""
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((hits[union > 0] / union[union > 0]).mean())


class Recorder(pl.Callback):
    """Remembers what happened in the last training of this process; by class path, `tiny.Recorder`."""

    latest: "Recorder"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Recorder.latest, self.learning_rates, self.names, self.dtypes = self, [], [], set()
        self.first = {key: value.clone() for key, value in pl_module.state_dict().items()}
        self.module, self.optimizer, self.epochs = pl_module, None, []
        classifier = pl_module.network.branches[0].classifier
        classifier.register_forward_hook(lambda *args: self.dtypes.add(args[-1].dtype))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.names.append(batch["name"])
        self.epochs.append(trainer.current_epoch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.optimizer = optimizer
        self.learning_rates.append([group["lr"] for group in optimizer.param_groups])


class Half(MixedPrecision):
    """16-mixed on a CPU, where Lightning would take bfloat16; with a gradient scaler, as on a GPU."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


class PowerCut(BaseException):
    """Raised by `Stopper`."""


class Stopper(pl.Callback):
    """Breaks a training off within an epoch, as a power cut would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch:
            raise PowerCut

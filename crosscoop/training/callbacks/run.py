"""The run's folder: its configuration, history, metrics, and the description in its checkpoints."""

import csv
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from crosscoop.evaluation.cascade import describe_cascade
from crosscoop.evaluation.records import confusion_record, describe, to_record, to_table
from crosscoop.files import replacing, write_json
from crosscoop.network.outputs import main_output
from crosscoop.prediction.pictures import save_confusion
from crosscoop.training.task import CooperativeSegmentation
from crosscoop.version import __version__


class RunFolder(pl.Callback):
    """Records of a run in `trainer.default_root_dir`.

    These are `config.yaml` (the resolved configuration, also sent to every logger, with the version of crosscoop),
    `history.csv` (a row per validation), `metrics.json` (the metrics of the last test or validation; after `fit`, of
    the best epoch), and the table of metrics on the console. `test` and `validate` also write `confusion.json` and
    `confusion.png` (pixels by true and predicted class, also sent to Weights & Biases), and their configuration as
    `test.yaml` or `validate.yaml`. Each checkpoint contains the configuration, class names and colours, so that it can
    be used without any other file.

    Args:
        config: The command's configuration, as plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.history: list[dict[str, float | None]] = []
        self.best: dict[str, Any] = {}
        self.losses: list[Tensor] = []
        self.started = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write `config.yaml` and send the configuration to the loggers and to the task's checkpoints."""
        pl_module.run_config = self.config  # type: ignore[assignment]
        if stage == "fit" and trainer.is_global_zero:
            self._folder(trainer).mkdir(parents=True, exist_ok=True)
            (self._folder(trainer) / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
            for logger in trainer.loggers:
                logger.log_hyperparams({**self.config, "crosscoop": __version__})

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the epoch's losses and timer."""
        self.losses, self.started = [], time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, without waiting for the device."""
        self.losses.append(outputs["loss"].detach())

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the history and the best epoch's metrics before the checkpoint is saved."""
        assert isinstance(pl_module, CooperativeSegmentation)
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "validate")
            return
        record = self._record(trainer, pl_module, "fit")
        row: dict[str, float | None] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {"seconds": time.monotonic() - self.started, "train/loss": self._mean_loss()}
        row |= {key: float(loss) for key, loss in trainer.callback_metrics.items() if key.startswith("val/loss")}
        row |= pl_module.figures
        self.history.append(row)
        with replacing(self._folder(trainer) / "history.csv") as path, path.open("w", newline="") as file:
            columns = dict.fromkeys(column for each in self.history for column in each)  # a resumed run may log others
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.history)
        if (record["miou"] or 0) > self.best.get("miou", -1):  # the first of equal ones, as in ModelCheckpoint
            self.best = {**record, "miou": record["miou"] or 0, "epoch": trainer.current_epoch}
            write_json(self._folder(trainer) / "metrics.json", self.best)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the best epoch's metrics."""
        if self.best:
            Console().print(to_table(self.best))
            print(f"Best of {len(self.history)} validations: epoch {self.best['epoch']}. Run: {self._folder(trainer)}")

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the metrics."""
        self._report(trainer, pl_module, "test")

    @rank_zero_only
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print how to resume after Ctrl-C or an error."""
        folder = self._folder(trainer)
        if trainer.state.fn == "fit" and (folder / "last.ckpt").exists():
            print(f"\nTo resume: crosscoop fit --run {shlex.quote(str(folder))} --resume", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, the best metrics, and the losses and time of the epoch so far."""
        losses = torch.stack(self.losses).tolist() if self.losses else []
        seconds = time.monotonic() - self.started
        return {"history": self.history, "best": self.best, "losses": losses, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them in a resumed run."""
        self.history, self.best = state_dict["history"], state_dict["best"]
        self.losses = [torch.tensor(loss) for loss in state_dict.get("losses", [])]
        self.started = time.monotonic() - state_dict.get("seconds", 0)

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        assert isinstance(module, CooperativeSegmentation)
        record, folder = self._record(trainer, module, stage), self._folder(trainer)
        write_json(folder / "metrics.json", record)
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        write_json(folder / "confusion.json", confusion_record(stage, module.scores, record["protocol"]))
        output = main_output(module.scores)
        scores = module.scores[output]
        title = f"{output}, {describe(record['protocol'])}"
        save_confusion(folder / "confusion.png", scores.counts.numpy(), scores.class_names, title)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"{stage}/confusion", [str(folder / "confusion.png")])
        Console().print(to_table(record))
        if module.cascade_record:
            print(describe_cascade(module.cascade_record))
        print(f"Peak memory: {peak_memory(module.device):.1f} GiB on {module.device}")
        print(f"Metrics: {folder / 'metrics.json'}\nConfusion matrix: {folder / 'confusion.png'}")

    def _record(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> dict[str, Any]:
        assert isinstance(module, CooperativeSegmentation)
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = data.dataset.test_split if stage == "test" else data.dataset.val_split
        protocol = {**data.protocol(split, module.num_images), "inference": module.inference.describe()}
        record = to_record(stage, module.scores, protocol)
        return {**record, "cascade": module.cascade_record} if module.cascade_record else record

    def _mean_loss(self) -> float:
        return sum(float(loss) for loss in self.losses) / max(len(self.losses), 1)

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: on the GPU if it uses one, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20

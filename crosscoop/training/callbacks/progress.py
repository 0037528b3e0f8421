"""The progress bar of a training."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from crosscoop.files import duration


class Progress(RichProgressBar):
    """Progress of each epoch, with the loss, the mIoU so far, and the time left until the end of the training."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed training starts it again."""
        super().on_train_start(trainer, pl_module)
        self.begun, self.step = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        done, total = trainer.global_step - getattr(self, "step", 0), trainer.estimated_stepping_batches
        if trainer.state.fn == "fit" and done and total < float("inf"):
            seconds = (time.monotonic() - self.begun) / done * (total - trainer.global_step)
            metrics["left"] = duration(seconds)
        return metrics

"""The bad samples that training skipped."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from crosscoop.files import replacing, shorten


class SkippedSamples(pl.Callback):
    """List of the training samples that `data.skip_bad_samples` skipped, over all workers and ranks.

    After each epoch that skipped any, a line on the console names them, and `skipped.csv` in the run's folder has a
    row per sample: its name, how often it was skipped, the first epoch, and the fault found then.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.latest: list[tuple[str, str]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the bad samples that the batch's samples replace."""
        self.latest += batch.get("skipped", [])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the samples of all ranks; the first rank writes the file."""
        gathered = [self.latest]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, self.latest)
        self.latest = []
        skipped = sorted((name, fault) for each in gathered for name, fault in each)
        for name, fault in skipped:
            row = {"sample": name, "times": 0, "first_epoch": trainer.current_epoch, "fault": fault}
            self.rows.setdefault(name, row)["times"] += 1
        if skipped and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "skipped.csv"
            with replacing(path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["sample", "times", "first_epoch", "fault"])
                writer.writeheader()
                writer.writerows(self.rows.values())
            names = dict(skipped)
            print(
                f"Epoch {trainer.current_epoch}: {len(names)} bad training samples skipped ({shorten(names)}): {path}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, with which a resumed run continues."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows."""
        self.rows = state_dict["rows"]

"""The list of the bad samples that training left out."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from crosscoop.files import replacing, shorten


class SkippedSamples(pl.Callback):
    """Counts and lists the training samples that `data.skip_bad_samples` left out, of all workers and ranks.

    After each epoch that skipped some, a line on the console names them, and `skipped.csv` in the run's folder has a
    row per sample: its name, how often it was skipped, in which epoch first, and what was wrong then.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.latest: list[tuple[str, str]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the batch's samples stand in for."""
        self.latest += batch.get("skipped", [])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the ranks together; the first one writes."""
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
        """The rows, which a resumed run goes on with."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.rows = state_dict["rows"]

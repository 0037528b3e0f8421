"""How the outputs differ on a test split: per class, and image by image."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from rich.console import Console

from crosscoop.evaluation.metrics import BranchComparison, Scores, count_pairs
from crosscoop.evaluation.records import branch_record, branch_table
from crosscoop.files import replacing, write_json
from crosscoop.training.task import CooperativeSegmentation


class OutputComparison(pl.Callback):
    """After a test, what each branch sees that the other does not.

    `images.csv` in the run's folder has a row per image: mIoU of every output, and the share of pixels on which top and
    bottom disagree; the images that differ most come first. With two branches, `branches.json` and a table
    on the console tell per class how often only top or only bottom is right, and how often the ensemble saves or loses
    a pixel.
    """

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin counting."""
        assert isinstance(pl_module, CooperativeSegmentation)
        self.comparison = BranchComparison(len(pl_module.class_names)).to(pl_module.device)
        self.images: list[dict[str, Any]] = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        assert isinstance(pl_module, CooperativeSegmentation)
        class_names = pl_module.class_names
        if "top" in outputs:
            self.comparison.update(outputs, batch["mask"])
        for i, name in enumerate(batch["name"]):
            mask = batch["mask"][i]
            row: dict[str, Any] = {"image": name}
            for output, labels in outputs.items():
                counts = count_pairs(labels[i], mask, len(class_names)).cpu()
                row[f"miou_{output}"] = Scores(counts, class_names).miou
            if "top" in outputs:
                row["disagreement"] = float((outputs["top"][i] != outputs["bottom"][i]).float().mean())
            self.images.append(row)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the ranks together."""
        gathered = [self.images]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, self.images)
        self.images = sorted((row for rows in gathered for row in rows), key=lambda row: row["image"])
        self.images.sort(key=lambda row: row.get("disagreement", 0), reverse=True)
        if self.comparison.update_called:
            self.right, self.disagreeing = self.comparison.compute()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `images.csv` and, with two branches, `branches.json` and the table."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, CooperativeSegmentation)
        folder = Path(trainer.default_root_dir)
        with replacing(folder / "images.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.images[0]))
            writer.writeheader()
            writer.writerows(self.images)
        if "top" in pl_module.scores:
            record = branch_record(self.right.cpu(), self.disagreeing.cpu(), pl_module.class_names)
            write_json(folder / "branches.json", record)
            Console().print(branch_table(record))

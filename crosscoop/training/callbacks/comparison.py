"""Differences between the outputs on a test split: per class and per image."""

import csv
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from crosscoop.data.dataset import VOID
from crosscoop.evaluation.boundary import near_outlines
from crosscoop.evaluation.calibration import Calibration, calibration_record
from crosscoop.evaluation.metrics import BranchComparison
from crosscoop.evaluation.records import branch_record, branch_shares, branch_table, describe
from crosscoop.evaluation.scores import evaluate
from crosscoop.files import replacing, write_json
from crosscoop.network.outputs import branch_names
from crosscoop.training.task import CooperativeSegmentation


class OutputComparison(pl.Callback):
    """Comparison of the outputs on a test split.

    `images.csv` in the run's folder has a row per image: the mIoU of every output and, with several branches, the share
    of pixels on which they disagree; the images with the most disagreement come first. `calibration.json` shows how
    often each output is right at which confidence. With several branches, `branches.json` and a table on the console
    show per class, near outlines and over all pixels how often only one of them is right, and how often the ensemble
    corrects or loses a pixel; Weights & Biases receives the table, too.
    """

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the counts."""
        assert isinstance(pl_module, CooperativeSegmentation)
        branches = branch_names(len(pl_module.network.branches))
        self.comparison, self.near = (
            BranchComparison(len(pl_module.class_names), branches).to(pl_module.device) for _ in range(2)
        )
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
        first, *others = self.comparison.branches
        if others:
            self.comparison.update(outputs, batch["mask"])
            self.near.update(outputs, batch["mask"].where(near_outlines(batch["mask"]), VOID))
        for i, name in enumerate(batch["name"]):
            labels = {output: batched[i : i + 1] for output, batched in outputs.items()}
            scores = evaluate(labels, batch["mask"][i : i + 1], pl_module.class_names)
            row: dict[str, Any] = {"image": name}
            row |= {f"miou_{output}": figures.miou for output, figures in scores.items()}
            if others:
                differ = torch.stack([labels[branch] != labels[first] for branch in others]).any(0)
                row["disagreement"] = float(differ.float().mean())
            self.images.append(row)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the counts of all ranks."""
        gathered = [self.images]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, self.images)
        self.images = sorted((row for rows in gathered for row in rows), key=lambda row: row["image"])
        self.images.sort(key=lambda row: row.get("disagreement", 0), reverse=True)
        if self.comparison.update_called:
            self.counts = self.comparison.compute(), self.near.compute()
        assert isinstance(pl_module, CooperativeSegmentation)
        metrics = cast(dict[str, Calibration], pl_module.calibration)
        self.calibration = {output: metric.compute() for output, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `images.csv` and, with several branches, `branches.json` and the table."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, CooperativeSegmentation)
        folder = Path(trainer.default_root_dir)
        with replacing(folder / "images.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.images[0]))
            writer.writeheader()
            writer.writerows(self.images)
        protocol = trainer.datamodule.protocol(trainer.datamodule.dataset.test_split, pl_module.num_images)  # type: ignore
        words = describe({**protocol, "inference": pl_module.inference.describe()})
        write_json(folder / "calibration.json", calibration_record(self.calibration, words))
        branches = self.comparison.branches
        if len(branches) > 1:
            record = branch_record(*self.counts, pl_module.class_names, branches)
            write_json(folder / "branches.json", record)
            Console().print(branch_table(record))
            shares = branch_shares(branches)
            rows = [[name, *(row[key] for key in shares)] for name, row in record.items()]
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table("test/branches", ["class", *shares.values()], rows)

"""Label PNGs from `crosscoop predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from crosscoop.data.images import write_mask
from crosscoop.errors import CrosscoopError


class PredictionWriter(BasePredictionWriter):
    """Writes the ensemble's labels as palette PNGs, under the samples' names.

    Args:
        folder: Where to write; None for `predictions` in the run's folder.
        output: Which output to write: ensemble, top or bottom.
    """

    def __init__(self, folder: str | None = None, output: str = "ensemble") -> None:
        super().__init__("batch")
        self.folder, self.output = folder, output

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch."""
        folder = Path(self.folder or Path(trainer.default_root_dir) / "predictions")
        output = self.output if len(prediction) > 1 else "network"
        if output not in prediction:
            raise CrosscoopError(f"predictions.output: got {output!r}, expected one of {', '.join(prediction)}.")
        labels = prediction[output].cpu().numpy()
        palette = trainer.datamodule.dataset.palette  # type: ignore[attr-defined]
        for name, label in zip(batch["name"], labels, strict=True):
            write_mask(folder / f"{name}.png", label, palette)

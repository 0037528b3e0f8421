"""Label PNGs from `crosscoop predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from crosscoop.data.dataset import VOID, Array, Color


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
        labels = prediction.get(self.output, list(prediction.values())[-1]).cpu().numpy()
        palette = trainer.datamodule.dataset.palette  # type: ignore[attr-defined]
        for name, label in zip(batch["name"], labels, strict=True):
            path = (Path(self.folder or Path(trainer.default_root_dir) / "predictions") / name).with_suffix("")
            write_labels(path.parent / f"{Path(name).name}.png", label, palette)


def write_labels(path: Path, labels: Array, palette: Sequence[Color]) -> None:
    """Write `(H, W)` class indices as an 8-bit palette PNG; void is black."""
    colors = np.zeros((VOID + 1, 3), np.uint8)
    colors[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(colors.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)

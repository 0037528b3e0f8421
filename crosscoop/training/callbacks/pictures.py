"""Images of predictions: in the run's folder after a test, in the loggers during training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from crosscoop.data.augment import resized
from crosscoop.data.datamodule import SegmentationData
from crosscoop.data.dataset import Array
from crosscoop.prediction.pictures import colored, save_comparison
from crosscoop.training.task import CooperativeSegmentation


class PredictionImages(pl.Callback):
    """A few evaluation images with ground truth and every output.

    After `test` and `validate`, they are drawn to `predictions.png` in the run's folder; in the validation epochs of
    `fit`, they are logged to Weights & Biases (images with switchable masks) and TensorBoard.

    Args:
        num_images: Number of images, spread evenly over the split; 0 for none.
        every_n_epochs: Number of epochs between images during `fit`; 0 for none.
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 1) -> None:
        self.num_images, self.every_n_epochs = num_images, every_n_epochs

    @rank_zero_only
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the images; at the start, as averaged weights (EMA) are already swapped out again at the end."""
        due = self.every_n_epochs and trainer.current_epoch % self.every_n_epochs == 0
        if trainer.sanity_checking or not due or trainer.state.fn != "fit":
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._to_wandb(logger, trainer, pl_module)
            elif isinstance(logger, TensorBoardLogger):
                palette = trainer.datamodule.dataset.palette  # type: ignore[attr-defined]
                for i, row in enumerate(self._rows(trainer, pl_module)):
                    strip = [a if a.ndim == 3 else colored(a, palette) for a in row.values()]
                    logger.experiment.add_image(
                        f"predictions/{i}", np.concatenate(strip, 1), trainer.global_step, dataformats="HWC"
                    )

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw `predictions.png` after `validate`."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw `predictions.png` after `test`."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.num_images:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = list(self._rows(trainer, pl_module))
        if not rows:
            return
        split = data.dataset.test_split if trainer.state.fn == "test" else data.dataset.val_split
        title = f"{type(data.dataset).__name__} {split}, {len(rows)} images spread evenly over the split"
        path = Path(trainer.default_root_dir) / "predictions.png"
        save_comparison(path, rows, data.dataset.class_names, data.dataset.palette, title)
        print(f"Example predictions: {path}")

    def _rows(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[dict[str, Array]]:
        """Yield image, ground truth and each output's labels, by name."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, CooperativeSegmentation)
        assert isinstance(data, SegmentationData)
        testing = trainer.state.fn == "test"
        items = data.evaluation_set(data.dataset.test_split if testing else data.dataset.val_split)
        for index in np.linspace(0, len(items) - 1, min(self.num_images, len(items))).astype(int):
            item = items[index]
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                image = item["image"][None].to(module.device).float() / 255
                outputs = module.labels(image, item["mask"].shape)
            yield {
                "image": resized(item["image"].permute(1, 2, 0).numpy(), None, item["mask"].shape)[0],
                "truth": item["mask"].numpy(),
                **{name: labels[0].cpu().numpy() for name, labels in outputs.items()},
            }

    def _to_wandb(self, logger: WandbLogger, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        import wandb

        assert isinstance(module, CooperativeSegmentation)
        class_labels = dict(enumerate([*module.class_names]))
        images = []
        for row in self._rows(trainer, module):
            image = row.pop("image")
            masks = {name: {"mask_data": mask, "class_labels": class_labels} for name, mask in row.items()}
            images.append(wandb.Image(image, masks=masks))
        logger.log_metrics({"predictions": images}, trainer.global_step)  # type: ignore[dict-item]

"""Losses and gradients that are no numbers any more."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from crosscoop.errors import CrosscoopError


class NonFinite(pl.Callback):
    """Stops a run, or leaves out the step, when the loss or a gradient is nan or infinite.

    It looks before each optimiser step, so that weights and checkpoints stay as they were before. That waits for the
    device once per step. With DDP all ranks decide alike. A step that is left out takes batch norm's statistics back,
    too. Under 16-mixed precision infinite gradients are the gradient scaler's affair: then only the loss counts.

    Args:
        max_skips: How many steps of a run may be left out; the next one stops it. 0 stops at once.
    """

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise CrosscoopError(f"nonfinite.max_skips: got {max_skips}, expected 0 or more.")
        self.max_skips, self.skipped = max_skips, 0
        self.losses: list[Tensor] = []
        self.names: list[str] = []
        self.buffers: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the names, and before the first batch of a step the statistics."""
        if not self.names and self.max_skips:
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self.names += batch["name"]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss, without waiting for the device."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Stop, or leave out the step.

        Raises:
            CrosscoopError: A loss or gradient is not finite, and no more steps may be left out.
        """
        values = [torch.stack([loss.float() for loss in self.losses]).sum()]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            values += [parameter.grad.sum() for parameter in pl_module.parameters() if parameter.grad is not None]
        bad = (~torch.stack([value.float() for value in values]).isfinite()).any().float()
        if trainer.world_size > 1:
            dist.all_reduce(bad)
        names, self.names, self.losses = self.names, [], []
        if not bad:
            return
        loss = float(values[0])
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(everyone, (names, loss))
            names = [name for each, _ in everyone for name in each]
            loss = sum(loss for _, loss in everyone) / trainer.world_size
        what = (
            f"Loss or gradients are not finite at step {trainer.global_step} of epoch {trainer.current_epoch} "
            f"(loss {loss:g}), on {', '.join(names)}"
        )
        self.skipped += 1
        pl_module.log("train/skipped_steps", float(self.skipped))
        if self.skipped > self.max_skips:
            raise CrosscoopError(
                f"{what}. Expected numbers; the checkpoints are from before. Look at these samples, lower "
                "model.optimizer.lr, set trainer.gradient_clip_val, or leave such steps out with --nonfinite.max_skips."
            )
        optimizer.zero_grad()  # without gradients an optimiser changes nothing
        for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        rank_zero_warn(f"{what}: the step is left out ({self.skipped} of at most {self.max_skips}).")

    def state_dict(self) -> dict[str, int]:
        """How many steps were left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

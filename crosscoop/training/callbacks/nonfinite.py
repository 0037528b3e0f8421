"""Non-finite losses and gradients."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from crosscoop.errors import CrosscoopError


class NonFinite(pl.Callback):
    """Check for non-finite losses and gradients, which stops the run or skips the step.

    It runs before each optimiser step, so that weights and checkpoints remain unaffected, and synchronises with the
    device once per step. With DDP all ranks decide alike. A skipped step also restores the statistics of batch norm.
    Under 16-mixed precision, the gradient scaler handles infinite gradients, and only the loss is checked.

    Args:
        max_skips: Number of steps that a run may skip; the next one stops it. With 0, the first one stops it.
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
        """Keep the samples' names and, before the first batch of a step, the statistics of batch norm."""
        if not self.names and self.max_skips:
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self.names += batch["name"]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss, without waiting for the device."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Stop the run or skip the step.

        Raises:
            CrosscoopError: A loss or gradient is not finite, and no more steps may be skipped.
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
                f"{what}. Expected finite values; the checkpoints predate them. Check these samples, lower "
                "model.optimizer.lr, set trainer.gradient_clip_val, or skip such steps with --nonfinite.max_skips."
            )
        optimizer.zero_grad()  # without gradients an optimiser changes nothing
        for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        rank_zero_warn(f"{what}: the step is skipped ({self.skipped} of at most {self.max_skips}).")

    def state_dict(self) -> dict[str, int]:
        """Return the number of skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the number of skipped steps."""
        self.skipped = state_dict["skipped"]

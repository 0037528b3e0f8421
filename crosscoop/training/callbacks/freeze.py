"""Frozen batch norm, for batches too small to estimate statistics from."""

import pytorch_lightning as pl
from torch.nn.modules.batchnorm import _BatchNorm

from crosscoop.training.task import CooperativeSegmentation


class FreezeBatchNorm(pl.Callback):
    """Frozen batch norm: the backbones keep their pretrained statistics while everything else trains.

    Args:
        affine: Freeze scale and shift as well.
        heads: Freeze batch norm in ASPP and decoder as well.
    """

    def __init__(self, affine: bool = False, heads: bool = False) -> None:
        self.affine, self.heads = affine, heads

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze batch norm; a run resumed within an epoch does not start the epoch again."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put batch norm into evaluation mode again, which Lightning reverts after each validation."""
        assert isinstance(pl_module, CooperativeSegmentation)
        roots = [pl_module.network] if self.heads else [b.backbone for b in pl_module.network.branches]
        for root in roots:
            for module in root.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
                    module.requires_grad_(not self.affine)

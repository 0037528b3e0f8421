"""Synchronised batch norm over all ranks, also for networks from timm."""

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import LayerSync
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from crosscoop.network.layers import BatchNorm2d


class CPUSyncBatchNorm(BatchNorm2d):
    """Synchronised batch norm with activation for the CPU (gloo), from sums that are reduced differentiably.

    torch's `SyncBatchNorm` has kernels for GPUs only, and DDP refuses it elsewhere.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)` with the statistics of all ranks, then activate as the original layer did."""
        shared = self.training and dist.is_initialized() and dist.get_world_size() > 1
        normalised = self._normalise(input) if shared else super().forward(input)
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def _normalise(self, input: Tensor) -> Tensor:
        values = input.double()  # variances from sums of squares need the precision
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        totals = all_reduce(sums)  # type: ignore[no-untyped-call]
        mean, square = (totals[:-1] / totals[-1]).chunk(2)
        variance = square - mean.square()
        unbiased = variance * totals[-1] / (totals[-1] - 1)
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            if running is not None and self.momentum is not None:
                running.lerp_(value.detach().to(running.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = values * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)
        return normalised.to(input.dtype)


class TimmSyncBatchNorm(LayerSync):
    """Lightning's hook for `trainer.sync_batchnorm: true` on the command line.

    torch's converter, Lightning's default, drops the activation inside timm's `BatchNormAct2d`
    (https://github.com/huggingface/pytorch-image-models/issues/1254).
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch norm below `model`, in place; parameters and their names are kept."""
        device = next(model.parameters()).device
        if isinstance(model, LightningModule):
            device = model.trainer.strategy.root_device  # the weights are moved there next
        layer = CPUSyncBatchNorm if device.type == "cpu" else SyncBatchNormAct
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _BatchNorm) and not isinstance(child, layer):
                    setattr(parent, name, synchronised(child, layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Keep the layers: outside training they compute the same as the original ones."""
        return model


def synchronised(norm: _BatchNorm, layer: type[_BatchNorm]) -> _BatchNorm:
    """Return a synchronised batch norm that shares the parameters and statistics of `norm`."""
    synced = layer(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced.drop = getattr(norm, "drop", nn.Identity())
    synced.act = getattr(norm, "act", nn.Identity())
    synced.weight, synced.bias = norm.weight, norm.bias
    synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
    synced.num_batches_tracked = norm.num_batches_tracked
    synced.train(norm.training)
    return synced

"""Batch norm over all ranks, for networks from timm too."""

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(SyncBatchNormAct):  # type: ignore[misc]
    """timm's synchronised batch norm with activation, which also runs on the CPU (gloo).

    On GPUs torch's own kernels do the work. torch refuses other devices; there the same statistics come from
    sums that the ranks add up differentiably.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)` with the statistics of all ranks, then activate as the original layer did."""
        shared = self.training and dist.is_initialized() and dist.get_world_size() > 1
        if self.training and not shared and x.numel() == x.shape[1]:  # no variance, see layers.BatchNorm2d
            statistics = self.running_mean, self.running_var, self.weight, self.bias
            return self.act(functional.batch_norm(x, *statistics, eps=self.eps))  # type: ignore[no-any-return]
        if x.device.type != "cpu" or not shared:
            activated: Tensor = super().forward(x)
            return activated
        values = x.float()
        count = torch.tensor([values.numel() / values.shape[1]], device=x.device)
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        totals = all_reduce(sums)  # type: ignore[no-untyped-call]
        mean, square = (totals[:-1] / totals[-1]).chunk(2)
        variance = square - mean.square()
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            with torch.no_grad():
                unbiased = variance * totals[-1] / (totals[-1] - 1)
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(unbiased.detach(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = values * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)
        return self.act(self.drop(normalised.to(x.dtype)))  # type: ignore[no-any-return]


class TimmSyncBatchNorm(LayerSync):
    """Lightning's hook for `trainer.sync_batchnorm: true` on the command line.

    torch's converter, Lightning's default, drops the activation inside timm's `BatchNormAct2d`
    (https://github.com/huggingface/pytorch-image-models/issues/1254).
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch norm below `model`, in place; parameters and their names stay."""
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                    setattr(parent, name, synchronised(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the layers: outside training they compute as the original ones."""
        return model


def synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    """A synchronised batch norm that shares the parameters and statistics of `norm`."""
    synced = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced.drop = getattr(norm, "drop", nn.Identity())
    synced.act = getattr(norm, "act", nn.Identity())
    synced.weight, synced.bias = norm.weight, norm.bias
    synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
    synced.num_batches_tracked = norm.num_batches_tracked
    synced.train(norm.training)
    return synced

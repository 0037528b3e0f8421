"""Preparation of a network for export as a static graph, without changing what it computes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.fold import fold_batch_norm

SAME = (Conv2dSame, MaxPool2dSame, AvgPool2dSame)
"""timm's layers with TensorFlow's padding, which depends on the input size."""


class Exportable(nn.Module):
    """Selected outputs of a network as a tuple, with folded batch norm, for images of any size.

    Padding and rotary positions are computed in a way that does not fix the size.

    Args:
        network: The network; it is not modified.
        outputs: Names of the selected outputs.
        upsample: False leaves the logits at the stride of `low`.
    """

    def __init__(self, network: CooperativeNetwork, outputs: Sequence[str], upsample: bool = True) -> None:
        super().__init__()
        self.network, self.outputs, self.upsample = fold_batch_norm(network), list(outputs), upsample
        for name, module in list(self.network.named_modules()):
            if isinstance(module, SAME):
                self.network.set_submodule(name, constant_padding(module))
            if type(module).__name__ == "RotaryEmbeddingDinoV3":  # which older releases of timm lack
                self.network.set_submodule(name, RotaryPositions(module))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)`, or `H/4, W/4`."""
        outputs = self.network.outputs(image, self.upsample)
        return tuple(outputs[name] for name in self.outputs)


def constant_padding(layer: Any) -> nn.Module:
    """Replace a layer of `SAME` by one with constant padding where the result is the same; else return it unchanged.

    Without this, every later size becomes an expression of the sizes before it: exporting EfficientNet-Lite0 to ONNX
    takes minutes, and torch.export cannot serialise some of these expressions.

    Args:
        layer: The layer, which must not be used afterwards.
    """
    dilation = getattr(layer, "dilation", (1, 1))
    extents = [d * (k - 1) for k, d in zip(layer.kernel_size, dilation, strict=True)]
    if isinstance(layer, AvgPool2dSame):
        if max(layer.stride) > 1:
            return layer  # type: ignore[no-any-return]
        (top, left), (bottom, right) = [e // 2 for e in extents], [e - e // 2 for e in extents]
        pool = nn.AvgPool2d(layer.kernel_size, 1, 0, layer.ceil_mode, layer.count_include_pad)
        return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), pool)
    pooled_far = isinstance(layer, MaxPool2dSame) and max(dilation) > 1  # torch pads at most half the kernel
    if max(layer.stride) > 2 or min(extents) == 0 or any(extent % 2 for extent in extents) or pooled_far:
        return layer  # type: ignore[no-any-return]
    return Mirrored(layer, extents)


class Mirrored(nn.Module):
    """A `same` convolution or max pooling with an odd kernel, computed on the mirrored map.

    If a side is even, `same` pads less at its start, whereas the padding at its end does not depend on the size. On the
    mirrored map the padding is therefore constant.

    Args:
        layer: The layer, which must not be used afterwards.
        extents: How much higher and wider than one pixel its window is.
    """

    def __init__(self, layer: nn.Conv2d | nn.MaxPool2d, extents: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        layer.padding = (extents[0] // 2, extents[1] // 2)
        if isinstance(layer, nn.Conv2d):
            layer.weight = nn.Parameter(layer.weight.detach().flip((2, 3)))

    def forward(self, feature: Tensor) -> Tensor:
        """Apply the layer to `(N, C, H, W)`."""
        plain = nn.Conv2d if isinstance(self.layer, nn.Conv2d) else nn.MaxPool2d
        output: Tensor = plain.forward(self.layer, feature.flip((2, 3)))  # type: ignore[arg-type]
        return output.flip((2, 3))


class RotaryPositions(nn.Module):
    """The rotary positions of DINOv3 for maps whose size is a variable of the graph: timm's take `float(height)`.

    Args:
        positions: timm's module.
    """

    def __init__(self, positions: Any) -> None:
        super().__init__()
        self.offset, self.halves = positions.grid_offset, positions.rotate_half
        self.periods: Tensor = positions.periods

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """Return sine and cosine of each position, `(height * width, 2 * dim)`, as timm's module does.

        Args:
            shape: Height and width of the map.
        """
        axes = [(torch.arange(side, device=self.periods.device) + 0.5 + self.offset) / side for side in shape]
        grid = 2 * torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1) - 1
        angles = (2 * math.pi * grid[:, :, None] / self.periods).flatten(1)
        angles = torch.cat([angles, angles], -1) if self.halves else angles.repeat_interleave(2, -1)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

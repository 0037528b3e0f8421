"""A network made ready for a graph of fixed operations, without a change in what it computes."""

from collections.abc import Sequence
from typing import Any

from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.fold import fold_batch_norm
from crosscoop.network.outputs import outputs_of

SAME = (Conv2dSame, MaxPool2dSame, AvgPool2dSame)
"""timm's layers that pad as TensorFlow does, by a number that depends on the size."""


class Exportable(nn.Module):
    """Chosen outputs of a network as a tuple, with batch norm folded and padding that does not depend on the size.

    Args:
        network: The network, which stays as it is.
        outputs: Names of the outputs.
        upsample: False leaves the logits at the stride of `low`.
    """

    def __init__(self, network: CooperativeNetwork, outputs: Sequence[str], upsample: bool = True) -> None:
        super().__init__()
        self.network, self.outputs, self.upsample = fold_batch_norm(network), list(outputs), upsample
        for name, module in list(self.network.named_modules()):
            if isinstance(module, SAME):
                self.network.set_submodule(name, constant_padding(module))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)`, or `H/4, W/4`."""
        outputs = outputs_of(self.network(image, self.upsample))
        return tuple(outputs[name] for name in self.outputs)


def constant_padding(layer: Any) -> nn.Module:
    """A layer of `SAME` with constant padding where that gives the same, else as it is.

    Otherwise every size that follows is an expression of the sizes before it: an export of EfficientNet-Lite0 to ONNX
    takes minutes, and torch.export cannot write some of these expressions.

    Args:
        layer: The layer, which must not be used any more.
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
    """A `same` convolution or maximum of odd kernel, computed from the lower right.

    `same` pads less at the beginning where a side is even. At the end it always pads the same: mirrored, the padding is
    constant.

    Args:
        layer: The layer, which must not be used any more.
        extents: How much higher and wider than a pixel its window is.
    """

    def __init__(self, layer: nn.Conv2d | nn.MaxPool2d, extents: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        layer.padding = (extents[0] // 2, extents[1] // 2)
        if isinstance(layer, nn.Conv2d):
            layer.weight = nn.Parameter(layer.weight.detach().flip((2, 3)))

    def forward(self, feature: Tensor) -> Tensor:
        """Apply it to `(N, C, H, W)`."""
        plain = nn.Conv2d if isinstance(self.layer, nn.Conv2d) else nn.MaxPool2d
        output: Tensor = plain.forward(self.layer, feature.flip((2, 3)))  # type: ignore[arg-type]
        return output.flip((2, 3))

"""The layers that ASPP and decoder are made of."""

from torch import Size, Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel, where it uses its running statistics.

    One value has no variance: torch raises there. It happens behind the image pooling of ASPP whenever a training
    batch holds one image (the last incomplete batch of an epoch, say).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`."""
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; the convolution dense or depthwise-separable, the map's size kept.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1 or 3.
        dilation: Atrous rate.
        separable: Split the convolution into a depthwise and a pointwise one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        separable: bool = False,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        if separable:
            convolutions = [
                nn.Conv2d(
                    in_channels,
                    in_channels,
                    kernel_size,
                    padding=padding,
                    dilation=dilation,
                    groups=in_channels,
                    bias=False,
                ),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
            ]
        else:
            convolutions = [
                nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
            ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        super().__init__(*convolutions, BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def resize(feature: Tensor, size: Size | tuple[int, int]) -> Tensor:
    """Resize `(N, C, H, W)` bilinearly to `size`; the same tensor where the size is that already."""
    if feature.shape[-2:] == size:
        return feature
    return functional.interpolate(feature, size=size, mode="bilinear", align_corners=False)

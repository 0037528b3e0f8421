"""The layers of ASPP and decoder."""

import torch
from torch import Size, Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its running statistics when it is trained on a single value per channel.

    A single value has no variance, so torch raises an error. This occurs after the image pooling of ASPP when a
    training batch contains only one image, such as the last, incomplete batch of an epoch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`."""
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise 3x3 convolution that keeps the map's size, with a faster training step on CPUs in channels-last layout.

    The pixels that an atrous kernel combines are `rate` apart, so a map consists of `rate * rate` independent maps.
    Convolving each of them at rate 1 gives the same sums, and oneDNN has a fast backward pass for rate 1 only.

    Args:
        channels: Channels of input and output.
        rate: Atrous rate.
    """

    def __init__(self, channels: int, rate: int = 1) -> None:
        super().__init__(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `(N, channels, H, W)`."""
        rate = self.dilation[0]
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        if rate == 1 or not (self.training and channels_last and input.is_cpu):
            return super().forward(input)
        number, channels, height, width = input.shape
        if rate >= max(height, width):  # only the kernel's centre overlaps the map
            return functional.conv2d(input, self.weight[:, :, 1:2, 1:2], groups=channels)
        rows, columns = (max(-(-side // rate), 3) for side in (height, width))  # smaller maps than 3 x 3 are slow
        padded = functional.pad(input, (0, columns * rate - width, 0, rows * rate - height)).permute(0, 2, 3, 1)
        parted = padded.reshape(number, rows, rate, columns, rate, channels).permute(0, 2, 4, 1, 3, 5)
        maps = parted.reshape(number * rate * rate, rows, columns, channels).permute(0, 3, 1, 2)
        maps = functional.conv2d(maps, self.weight, padding=1, groups=channels).permute(0, 2, 3, 1)
        joined = maps.reshape(number, rate, rate, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
        output = joined.reshape(number, rows * rate, columns * rate, channels).permute(0, 3, 1, 2)
        return output[:, :, :height, :width]


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm and ReLU; the convolution is dense or depthwise separable and keeps the map's size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1 or 3.
        dilation: Atrous rate.
        separable: Split a 3x3 convolution into a depthwise and a pointwise one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        separable: bool = False,
    ) -> None:
        if separable:
            convolutions = [DepthwiseConv2d(in_channels, dilation), nn.Conv2d(in_channels, out_channels, 1, bias=False)]
        else:
            padding = dilation * (kernel_size // 2)
            convolutions = [
                nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
            ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        super().__init__(*convolutions, BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def resize(feature: Tensor, size: Size | tuple[int, int]) -> Tensor:
    """Resize `(N, C, H, W)` bilinearly to `size`; return the same tensor if it already has that size."""
    if feature.shape[-2:] == size:
        return feature
    return functional.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def resize_sparsely(feature: Tensor, size: Size | tuple[int, int], step: int) -> Tensor:
    """Return `resize(feature, size)[..., step // 2 :: step, step // 2 :: step]`, without computing the other pixels."""
    for dimension, side in zip((-2, -1), size, strict=True):
        last = feature.shape[dimension] - 1
        pixels = torch.arange(step // 2, side, step, device=feature.device)
        place = ((pixels + 0.5) * ((last + 1) / side) - 0.5).clamp(0, last)
        before = place.long()
        share = (place - before).to(feature.dtype)
        share = share[:, None] if dimension == -2 else share
        first, second = (feature.index_select(dimension, at) for at in (before, (before + 1).clamp(max=last)))
        feature = first.lerp(second, share)
    return feature
